"""Leaves out the members of a body that this version does not know, at every level of it.

Used for `unknown_fields = warn`, after a body was refused for such a member.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import msgspec.inspect as types


def leave_out_unknown(value: object, wanted: type) -> list[str]:
    """Remove from `value`, a body or a member of one in plain dicts and lists, what its type
    `wanted` does not declare. Returns the places, such as `messages[0].mood`. Takes time of the
    size of `value`.
    """
    return list(_removed(value, _described(wanted), ""))


@functools.cache
def _described(wanted: type) -> types.Type:
    return types.type_info(wanted)


def _removed(value: object, wanted: types.Type, path: str) -> Iterator[str]:
    match wanted:
        case types.StructType() if isinstance(value, dict):
            yield from _removed_members(value, wanted, path)
        case types.ListType() if isinstance(value, list):
            for i, each in enumerate(value):
                yield from _removed(each, wanted.item_type, f"{path}[{i}]")
        case types.UnionType():
            for each_type in wanted.types:
                if _may_be(value, each_type):
                    yield from _removed(value, each_type, path)


def _removed_members(value: dict[str, Any], wanted: types.StructType, path: str) -> Iterator[str]:
    known = {field.encode_name: field.type for field in wanted.fields}
    for name in list(value):
        here = f"{path}.{name}" if path else name
        if name in known:
            yield from _removed(value[name], known[name], here)
        elif name != wanted.tag_field:
            del value[name]
            yield here


def _may_be(value: object, wanted: types.Type) -> bool:
    """Whether `value` is of this type among those of a union: of structs at most one has the tag
    that `value` has.
    """
    if not isinstance(wanted, types.StructType) or wanted.tag_field is None:
        return True
    return isinstance(value, dict) and value.get(wanted.tag_field) == wanted.tag

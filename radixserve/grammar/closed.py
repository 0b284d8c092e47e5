"""Objects with the members that their schema names, and no others.

A schema that does not mention `additionalProperties` allows members of any name. Clients rarely
mean that: they turn the object into arguments of a function or members of a class. A weak model
that may invent members also rarely stops. What a closed schema matches its original matches, too.
"""

from __future__ import annotations

from typing import Any

import msgspec

from radixserve.grammar.schema import parts_of, with_parts
from radixserve.grammar.source import MAX_CHARS

_OTHERS = ("additionalProperties", "patternProperties")
_COMBINING = ("anyOf", "oneOf", "$ref")
_KEPT = ("$defs", "definitions")


def closed(schema: Any) -> Any:
    """`schema` in which every object that names members has no others.

    A schema that combines the members of several schemas is returned as it is, because none of its
    parts knows all of them; so is one that is nested too deeply to be read, and one of more than
    MAX_CHARS, which will be refused. Cost: the schema's size, about 1 ms per 10 KB.
    """
    try:
        is_large = len(msgspec.json.encode(schema).decode()) > MAX_CHARS
        return schema if is_large or _combines(schema) else _closed(schema)
    except RecursionError:
        return schema


def _combines(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    all_of = schema.get("allOf")
    alternatives = [keyword for keyword in _COMBINING if keyword in schema]
    several = isinstance(all_of, list) and len(all_of) > 1
    has_members = "properties" in schema or "required" in schema
    if several or ((alternatives or all_of) and has_members) or (alternatives and all_of):
        return True
    return any(_combines(part) for part in _all_parts(schema))


def _all_parts(schema: dict[str, Any]) -> list[Any]:
    parts = [part for _, part in parts_of("", schema)]
    for keyword in _KEPT:
        if isinstance(kept := schema.get(keyword), dict):
            parts += kept.values()
    return parts


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    result = with_parts(schema, _closed)
    if _is_open(schema):
        result["additionalProperties"] = False
    return result


def _is_open(schema: dict[str, Any]) -> bool:
    """Whether the object may have members that are not named, and need not."""
    named, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(named, dict) or any(keyword in schema for keyword in _OTHERS):
        return False
    at_least = schema.get("minProperties", 0)
    return (
        isinstance(required, list)
        and all(isinstance(name, str) and name in named for name in required)
        and isinstance(at_least, int)
        and at_least <= len(named)
    )

"""Draws request bodies from the types that endpoints decode, so that new fields and endpoints are
covered without a change here.

Numbers come from a list of edges, words from the string literals in the source of `radixserve.api`:
names of roles, of types, of fields and of values that the server compares with. `Any` is drawn from
every struct of that package. A body that was answered is kept, and later ones are made from it.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
import msgspec.inspect as types

import radixserve.api
from tests.api.conftest import MODEL

INTEGERS: Final = (0, 1, 2, 3, 5, 20, 97, 256, 257, 258, -1, 2**31, 2**63 - 1, 2**63, -(2**63))
FLOATS: Final = (0.0, 0.5, 1.0, 2.0, 1e-300, -0.5, 5.5, 1e308, 10**30)
TEXTS: Final = ("", "a", "text", MODEL, "\0", "é😀", "<eos>", "x" * 9000, "\ud7ff")
_KEPT: Final = 40  # answered bodies per endpoint
_MOST_LEVELS: Final = 6


class Bodies:
    """Bodies for one endpoint, whose type is None if it decodes none."""

    def __init__(self, random: Random, body_type: type | None, good: dict[str, Any] | None) -> None:
        self._random = random
        self._type = None if body_type is None else types.type_info(body_type)
        self._answered = [] if good is None else [good]

    def draw(self) -> bytes:
        """A body: of the right type, from one that was answered, or anything; some of them with
        bytes changed.
        """
        raw = json.dumps(self._body()).encode()
        return self._damaged(raw) if self._random.random() < 0.15 else raw

    def keep(self, raw: bytes) -> None:
        """Make later bodies from this one, which was answered; some endpoints need none."""
        body = json.loads(raw) if raw.strip() else None
        if isinstance(body, dict) and len(raw) < 2000:
            self._answered.append(body)
            if len(self._answered) > _KEPT:
                del self._answered[1 + self._random.randrange(_KEPT - 1)]

    def _body(self) -> Any:
        kind = self._random.random()
        if self._type is None or kind < 0.05:
            return self._anything(0)
        if not self._answered or kind < 0.2 or not isinstance(self._type, types.StructType):
            return self._value(self._type, 0)
        body = copy.deepcopy(self._random.choice(self._answered))
        for each in self._random.choices(self._type.fields, k=self._random.randrange(4)):
            body[each.encode_name] = self._value(each.type, 1)
        if self._random.random() < 0.1:
            del body[self._random.choice(list(body))]
        return body

    def _value(self, wanted: types.Type, level: int) -> Any:
        """A value of the type `wanted`, or now and then of another."""
        if level > _MOST_LEVELS or self._random.random() < 0.03:
            return self._leaf()
        match wanted:
            case types.StructType():
                return self._struct(wanted, level)
            case types.UnionType():
                return self._value(self._random.choice(wanted.types), level)
            case types.ListType():
                return [
                    self._value(wanted.item_type, level + 1)
                    for _ in range(self._random.choice((0, 1, 1, 1, 2, 3, 9)))
                ]
            case types.DictType():
                keys = [self._word() for _ in range(self._random.choice((0, 1, 1, 2, 3, 20)))]
                drawn = {str(key): self._value(wanted.value_type, level + 1) for key in keys}
                return self._anything(level) if self._random.random() < 0.5 else drawn
            case types.LiteralType():
                return self._random.choice(wanted.values)
            case types.BoolType():
                return self._random.random() < 0.5
            case types.IntType():
                return self._random.choice(INTEGERS)
            case types.FloatType():
                return self._random.choice(FLOATS)
            case types.StrType():
                return self._word()
            case types.NoneType():
                return None
        return self._anything(level)

    def _struct(self, struct: types.StructType, level: int) -> dict[str, Any]:
        """All that is required, and a few of the other fields."""
        optional = [each for each in struct.fields if not each.required]
        chosen = self._random.choices(optional, k=self._random.randrange(4)) if optional else []
        fields = [each for each in struct.fields if each.required] + chosen
        drawn = {each.encode_name: self._value(each.type, level + 1) for each in fields}
        if struct.tag_field is not None:
            drawn[struct.tag_field] = struct.tag
        if self._random.random() < 0.03:
            drawn[self._word()] = self._leaf()
        return drawn

    def _anything(self, level: int) -> Any:
        kind = self._random.random()
        if kind < 0.4 or level > _MOST_LEVELS:
            return self._leaf()
        if kind < 0.8:
            return self._struct(self._random.choice(STRUCTS), level + 1)
        if kind < 0.9:
            return [self._anything(level + 1) for _ in range(self._random.randrange(4))]
        return {self._word(): self._anything(level + 1) for _ in range(self._random.randrange(4))}

    def _leaf(self) -> Any:
        pools: tuple[Sequence[Any], ...] = (
            INTEGERS,
            FLOATS,
            (None, True, False, [], {}),
            [self._word()],
        )
        return self._random.choice(self._random.choice(pools))

    def _word(self) -> str:
        kind = self._random.random()
        if kind < 0.4:
            return self._random.choice(TEXTS)
        if kind < 0.5:
            return str(self._random.choice(INTEGERS))
        return self._random.choice(WORDS)

    def _damaged(self, raw: bytes) -> bytes:
        at = self._random.randrange(len(raw) + 1)
        inserted = self._random.randbytes(self._random.randrange(5))
        return raw[:at] + inserted + raw[at + self._random.randrange(9) :]


def _words() -> list[str]:
    """The string literals of the API's source that are one word."""
    found = set()
    for path in sorted(Path(radixserve.api.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return sorted(word for word in found if word.isprintable() and " " not in word and word)


def _structs() -> list[types.StructType]:
    """Every struct of the API that is imported by now."""
    modules = [module for name, module in sys.modules.items() if name.startswith("radixserve.api")]
    found = {
        each
        for module in modules
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, msgspec.Struct) and each.__struct_fields__
    }
    described = []
    for each in sorted(found, key=lambda each: each.__name__):
        with contextlib.suppress(TypeError):  # part of an answer, which is never decoded
            described.append(types.type_info(each))
    return [each for each in described if isinstance(each, types.StructType)]


WORDS: Final = _words()
STRUCTS: Final = _structs()

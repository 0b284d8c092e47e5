"""Which schemas are closed, and that closing only takes members away."""

from __future__ import annotations

from typing import Any

import pytest

from radixserve.grammar.closed import closed
from radixserve.grammar.source import MAX_CHARS

CLOSED = {"additionalProperties": False}
NAMED = {"properties": {"a": {"type": "string"}}}


def test_every_object_that_names_members_has_no_others() -> None:
    schema = {
        "properties": {"a": {"type": "array", "items": NAMED}, "b": {"$ref": "#/$defs/c"}},
        "required": ["a"],
        "$defs": {"c": {"anyOf": [NAMED, {"type": "null"}]}},
    }
    assert closed(schema) == {
        "properties": {"a": {"type": "array", "items": NAMED | CLOSED}, "b": {"$ref": "#/$defs/c"}},
        "required": ["a"],
        "$defs": {"c": {"anyOf": [NAMED | CLOSED, {"type": "null"}]}},
        **CLOSED,
    }


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": "object"},
        NAMED | {"additionalProperties": True},
        NAMED | {"additionalProperties": {"type": "string"}},
        NAMED | {"patternProperties": {"^x": {}}},
        NAMED | {"required": ["b"]},
        NAMED | {"minProperties": 2},
        {"allOf": [NAMED, {"properties": {"b": {}}}]},
        {"anyOf": [NAMED, {"required": ["b"]}], "properties": {"b": {}}},
        {"$ref": "#/$defs/c", "required": ["b"], "$defs": {"c": NAMED}},
        {"items": {"allOf": [{"$ref": "#/$defs/c"}, NAMED]}, "$defs": {"c": NAMED}},
        {"properties": 1},
    ],
)
def test_a_schema_that_allows_or_needs_other_members_stays_open(schema: Any) -> None:
    assert closed(schema) == schema


def test_a_member_may_have_the_name_of_a_keyword() -> None:
    schema = {"properties": {"properties": {"type": "string"}, "allOf": {"type": "string"}}}
    assert closed(schema) == schema | CLOSED


def test_one_schema_alone_is_no_combination() -> None:
    assert closed({"allOf": [NAMED]}) == {"allOf": [NAMED | CLOSED]}


def test_a_schema_that_is_nested_too_deeply_is_left_to_the_check() -> None:
    schema: dict[str, Any] = {}
    for _ in range(50_000):
        schema = {"items": schema}
    assert closed(schema) is schema
    while schema:  # in pieces, because the interpreter would release it by recursion
        schema = schema.pop("items")


def test_a_schema_that_will_be_refused_for_its_size_is_not_walked() -> None:
    large = NAMED | {"description": "x" * MAX_CHARS}
    assert closed(large) is large

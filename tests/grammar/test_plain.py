"""Keywords without effect do not get a schema refused; others are rewritten, to mean the same."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from radixserve.errors import BadRequest
from radixserve.grammar import check
from radixserve.grammar.plain import FORMATS, plain
from radixserve.request import Grammar
from tests.grammar.accept import accepts, grammar, vocabulary

VOID: list[dict[str, Any]] = [
    {"uniqueItems": False},
    {"nullable": False},
    {"$recursiveAnchor": False},
    {"not": False},
    {"dependencies": {}},
    {"dependentRequired": {}},
    {"dependentSchemas": {}},
    {"propertyNames": True},
    {"propertyNames": {}},
    {"unevaluatedItems": {}},
    {"unevaluatedProperties": True},
    {"if": {"type": "null"}},
    {"then": False},
    {"else": False},
    {"minContains": 2},
    {"maxContains": 0},
]


@pytest.mark.parametrize("void", VOID, ids=str)
def test_a_keyword_without_effect_is_left_out_wherever_it_stands(void: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(void).validate([1, 1])
    jsonschema.Draft202012Validator(void).validate({"a": 1})
    for schema, rest in (
        ({"type": "array"} | void, {"type": "array"}),
        ({"properties": {"p": {"anyOf": [void]}}}, {"properties": {"p": {"anyOf": [{}]}}}),
        ({"$ref": "#/$defs/d", "$defs": {"d": void}}, {"$ref": "#/$defs/d", "$defs": {"d": {}}}),
    ):
        assert plain(schema) == rest
    check(grammar("json_schema", {"type": "array"} | void), vocabulary())


def test_the_same_keyword_with_effect_is_refused() -> None:
    schemas: list[dict[str, Any]] = [
        {"uniqueItems": True},
        {"not": {}},
        {"if": {}, "then": {}},
        {"if": {}, "else": {}},
        {"contains": {}, "minContains": 2},
        {"dependencies": {"a": ["b"]}},
        {"unevaluatedProperties": False},
    ]
    for schema in schemas:
        with pytest.raises(BadRequest, match="is not supported"):
            check(grammar("json_schema", schema), vocabulary())


def test_a_nullable_type_is_a_type_or_null() -> None:
    wanted = grammar("json_schema", {"type": "string", "nullable": True})
    assert accepts(wanted, '"a"')
    assert accepts(wanted, "null")
    assert not accepts(wanted, "1")
    assert plain({"type": ["null", "string"], "nullable": True}) == {"type": ["null", "string"]}
    listed = grammar("json_schema", {"type": "string", "enum": ["a"], "nullable": True})
    assert accepts(listed, '"a"')
    assert not accepts(listed, "null"), "it is not among the values"


def test_nullable_without_a_type_has_no_meaning_and_is_refused() -> None:
    with pytest.raises(BadRequest, match="'nullable' at #"):
        check(grammar("json_schema", {"enum": ["a"], "nullable": True}), vocabulary())


def test_limits_may_be_written_with_a_decimal_point() -> None:
    wanted = grammar("json_schema", {"type": "array", "minItems": 1.0, "maxItems": 2.0})
    assert [accepts(wanted, text) for text in ("[]", "[1]", "[1, 2, 3]")] == [False, True, False]
    with pytest.raises(BadRequest, match="minItems"):
        check(grammar("json_schema", {"type": "array", "minItems": 1.5}), vocabulary())


@pytest.mark.parametrize("name", ["password", "int32", "country-code", "unknown"])
def test_a_format_of_no_draft_is_an_annotation(name: str) -> None:
    assert accepts(grammar("json_schema", {"type": "string", "format": name}), '"any text"')


def test_a_format_of_a_draft_is_enforced_or_refused() -> None:
    for name in FORMATS:
        wanted = grammar("json_schema", {"type": "string", "format": name})
        assert refusal_of(wanted) == f"Unknown format: {name}" or not accepts(wanted, r'"no \n"')


def refusal_of(wanted: Grammar) -> str:
    """Why it is refused, as the library says it; empty if it is not."""
    try:
        check(wanted, vocabulary())
    except BadRequest as refusal:
        return refusal.message.removeprefix("The schema uses what is not supported: ")
    return ""


def test_schemas_in_a_lark_source_are_rewritten_too() -> None:
    lark = 'start: %json {"type": "string", "nullable": true}'
    assert accepts(Grammar(kind="lark", source=lark), "null")


def test_names_and_values_are_left_alone() -> None:
    schema = {
        "properties": {"nullable": {"const": {"uniqueItems": False}}, "not": {"type": "null"}},
        "enum": [{"then": 1}],
        "default": {"format": "x"},
    }
    assert plain(schema) == schema


def test_a_schema_that_is_nested_too_deeply_is_left_to_others() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"items": deep}
    assert plain(deep) is deep

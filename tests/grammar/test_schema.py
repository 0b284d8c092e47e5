"""No JSON Schema keyword is silently ignored: each is enforced or refused by name."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from radixserve.errors import BadRequest
from radixserve.grammar import check
from radixserve.grammar.schema import ENFORCED, REFUSED, check_keywords
from tests.grammar.accept import accepts, grammar, vocabulary

# Of each keyword a schema, an instance that is valid, and one that only this keyword makes invalid.
CASES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "$ref": ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, None, 1),
    "allOf": ({"allOf": [{"minimum": 2}, {"maximum": 4}], "type": "integer"}, 3, 5),
    "anyOf": ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, True, 1),
    "oneOf": ({"oneOf": [{"type": "null"}, {"type": "boolean"}]}, True, 1),
    "const": ({"const": [1, "a"]}, [1, "a"], [1, "b"]),
    "enum": ({"enum": ["a", 2, None]}, 2, 3),
    "type": ({"type": ["string", "null"]}, "x", 1),
    "items": ({"type": "array", "items": {"type": "integer"}}, [1, 2], [1, "a"]),
    "additionalItems": (
        {"type": "array", "items": [{"type": "null"}], "additionalItems": False},
        [None],
        [None, 1],
    ),
    "prefixItems": ({"type": "array", "prefixItems": [{"type": "null"}]}, [None, 1], [1, 1]),
    "minItems": ({"type": "array", "minItems": 2}, [1, 2], [1]),
    "maxItems": ({"type": "array", "maxItems": 1}, [1], [1, 2]),
    "properties": (
        {"type": "object", "properties": {"a": {"type": "null"}}},
        {"a": None},
        {"a": 1},
    ),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^a": {"type": "null"}}},
        {"ab": None, "b": 1},
        {"ab": 1},
    ),
    "additionalProperties": ({"type": "object", "additionalProperties": False}, {}, {"a": 1}),
    "required": ({"type": "object", "required": ["a"]}, {"a": 1}, {"b": 1}),
    "minProperties": ({"type": "object", "minProperties": 1}, {"a": 1}, {}),
    "maxProperties": ({"type": "object", "maxProperties": 1}, {"a": 1}, {"a": 1, "b": 1}),
    "minLength": ({"type": "string", "minLength": 2}, "ab", "a"),
    "maxLength": ({"type": "string", "maxLength": 2}, "ää", "abc"),
    "pattern": ({"type": "string", "pattern": "b+$"}, "abb", "ba"),
    "format": ({"type": "string", "format": "date"}, "2026-02-28", "2026-2-28"),
    "minimum": ({"type": "number", "minimum": 1.5}, 1.5, 1.4),
    "maximum": ({"type": "number", "maximum": 10}, 10, 11),
    "exclusiveMinimum": ({"type": "integer", "exclusiveMinimum": 1}, 2, 1),
    "exclusiveMaximum": ({"type": "integer", "exclusiveMaximum": 1}, 0, 1),
    "multipleOf": ({"type": "integer", "multipleOf": 7}, 49, 50),
}
WITHOUT_ASSERTION = {"$comment", "$id", "$schema", "title", "description", "default", "examples"}


def test_every_keyword_has_a_verdict() -> None:
    drafts = (
        jsonschema.Draft3Validator,
        jsonschema.Draft4Validator,
        jsonschema.Draft7Validator,
        jsonschema.Draft201909Validator,
        jsonschema.Draft202012Validator,
    )
    known = {keyword for draft in drafts for keyword in draft.VALIDATORS}
    assert known - ENFORCED - REFUSED == set()
    assert not ENFORCED & REFUSED
    assert set(CASES) == ENFORCED


@pytest.mark.parametrize("keyword", CASES)
def test_an_enforced_keyword_is_enforced(keyword: str) -> None:
    schema, good, bad = CASES[keyword]
    wanted = grammar("json_schema", schema)
    check(wanted, vocabulary())
    assert accepts(wanted, json.dumps(good, ensure_ascii=False))
    assert not accepts(wanted, json.dumps(bad))


# Keywords that have an effect only beside another one.
BESIDE = {
    "if": "then",
    "then": "if",
    "else": "if",
    "minContains": "contains",
    "maxContains": "contains",
}


@pytest.mark.parametrize("keyword", sorted(REFUSED))
def test_any_other_keyword_is_refused_by_name_and_place(keyword: str) -> None:
    inner: dict[str, Any] = {keyword: {"a": {}}, BESIDE.get(keyword, "title"): {}}
    for schema, place in (
        (inner, "#"),
        ({"properties": {"p": {"anyOf": [inner]}}}, "#/properties/p/anyOf/0"),
        (
            {"items": {"$ref": "#/$defs/d%25/x~1"}, "$defs": {"d%": {"x/": inner}}},
            "#/$defs/d%25/x~1",
        ),
        (
            {"prefixItems": [{"$ref": "other"}], "$defs": {"d": {"$id": "other", **inner}}},
            "#/$defs/d",
        ),
    ):
        with pytest.raises(BadRequest) as refusal:
            check(grammar("json_schema", schema), vocabulary())
        assert refusal.value.code == "unsupported_parameter"
        assert f"{keyword!r} at {place} " in refusal.value.message


def test_names_and_values_that_look_like_keywords_are_none() -> None:
    check_keywords(
        {
            "type": "object",
            "properties": {"not": {"enum": [{"if": 1}]}, "uniqueItems": {"const": {"then": 1}}},
            "required": ["not"],
            "default": {"not": {}},
            "examples": [{"contains": 1}],
        }
    )


def test_what_is_never_referred_to_may_hold_anything() -> None:
    schema = {"type": "null", "$defs": {"a": {"not": {}}}, "definitions": {"b": {"if": {}}}}
    check(grammar("json_schema", schema), vocabulary())


def test_annotations_and_words_of_no_draft_mean_nothing() -> None:
    schema: dict[str, Any] = {
        "type": "null",
        **dict.fromkeys(WITHOUT_ASSERTION, "x"),
        "x-unit": "m",
    }
    schema |= {"$id": "http://a/b", "$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema |= {"nullable": False, "deprecated": True, "readOnly": True, "examples": [1]}
    wanted = grammar("json_schema", schema)
    check(wanted, vocabulary())
    assert accepts(wanted, "null")


def test_a_recursive_schema_is_walked_once() -> None:
    check_keywords({"properties": {"a": {"$ref": "#"}, "b": {"$ref": "#/properties/a"}}})


def test_one_of_is_refused_where_several_could_match() -> None:
    with pytest.raises(BadRequest) as refusal:
        check(
            grammar("json_schema", {"oneOf": [{"type": "integer"}, {"minimum": 2}]}), vocabulary()
        )
    assert "oneOf" in refusal.value.message
    assert refusal.value.code == "unsupported_parameter"


def test_a_union_of_objects_told_apart_by_a_constant_is_enforced() -> None:
    """As pydantic writes it."""
    schema = {
        "$defs": {
            name: {
                "type": "object",
                "properties": {
                    "kind": {"const": name, "type": "string"},
                    name: {"type": "integer"},
                },
                "required": ["kind", name],
            }
            for name in ("cat", "dog")
        },
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        "discriminator": {"propertyName": "kind"},
    }
    wanted = grammar("json_schema", schema)
    assert accepts(wanted, '{"kind": "dog", "dog": 1}')
    assert not accepts(wanted, '{"kind": "dog", "cat": 1}')

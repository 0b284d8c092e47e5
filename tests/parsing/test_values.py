"""Plain text to JSON by a schema, and Python literals to JSON."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixserve.parsing.python_text import literal_to_json
from radixserve.parsing.values import to_json, types_of

LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(LITERALS)
def test_what_python_prints_of_a_value_is_read_back(value: Any) -> None:
    text = literal_to_json(repr(value))
    assert text is not None
    assert json.loads(text) == value


@given(LITERALS)
def test_json_is_read_as_a_literal_too(value: Any) -> None:
    text = literal_to_json(json.dumps(value))
    assert text is not None
    assert json.loads(text) == value


@given(st.text("'\"\\xunN01a\n{}[](),: ", max_size=12))
def test_what_is_read_is_what_python_means(text: str) -> None:
    """Or at least a value, where Python joins strings, refuses an escape, or has sets."""
    found = literal_to_json(text)
    assert found is None or json.loads(found) is not Ellipsis
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError):
        return
    if found is not None and isinstance(value, str | int) and "\\" not in text:
        assert json.loads(found) == value


@pytest.mark.parametrize(
    "text", ["", "x", "f(1)", "1 2", "1j", "nan", "inf", "{1, 2}", "'a' 'b'", "[" * 40 + "]" * 40]
)
def test_what_is_no_literal_is_refused(text: str) -> None:
    assert literal_to_json(text) is None


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("5", "string", "5"),
        ("5", "number", 5),
        (" 5\n", "number", 5),
        ("five", "number", "five"),
        ("NaN", "number", "NaN"),
        ("1" * 5000, "number", "1" * 5000),
        ("True", "boolean", True),
        ("false", "boolean", False),
        ("1", "boolean", "1"),
        ("None", "null string", None),
        ("None", "string", "None"),
        ("nothing", "null string", "nothing"),
        ("[1, 'a']", "array", [1, "a"]),
        ("{'a': None}", "object", {"a": None}),
        ('{"a": 1}', "array", '{"a": 1}'),
        ('"quoted"', "string null", "quoted"),
        ("[" * 9000, "array", "[" * 9000),
    ],
)
def test_the_schema_decides_what_a_text_is(text: str, types: str, value: object) -> None:
    assert json.loads(to_json(text, frozenset(types.split()))) == value


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "integer"}, "number"),
        ({"type": ["string", "null"]}, "string null"),
        ({"enum": [1, "a", None]}, "number string null"),
        ({"const": True}, "boolean"),
        ({"anyOf": [{"type": "array"}, {"$ref": "#/$defs/x"}]}, "array object"),
        ({"allOf": [{"$ref": "#/$defs/x"}]}, "object"),
        ({"$ref": "#/$defs/loop"}, "string"),
        ({"$ref": "#/$defs/missing"}, "string"),
        ({"$ref": "http://elsewhere"}, "string"),
        ({}, "string"),
        (True, "string"),
    ],
)
def test_a_schema_names_the_types_of_a_parameter(schema: object, types: str) -> None:
    parameters = {
        "properties": {"p": schema},
        "$defs": {"x": {"type": "object"}, "loop": {"$ref": "#/$defs/loop"}},
    }
    assert types_of(parameters, "p") == frozenset(types.split())


def test_a_parameter_that_no_schema_mentions_is_a_string() -> None:
    assert types_of({}, "p") == types_of({"properties": []}, "p") == frozenset(["string"])

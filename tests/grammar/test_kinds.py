"""Every kind of grammar takes what it describes and nothing else, and bad sources are refused."""

from __future__ import annotations

import json

import pytest
from llguidance import LLMatcher

from radixserve.errors import BadRequest
from radixserve.grammar import check, compile_grammar
from radixserve.grammar.source import MAX_CHARS, MAX_CHOICES, library_source
from radixserve.request import Grammar
from tests.grammar.accept import accepts, byte_vocabulary, compiled, grammar, vocabulary

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
MANY = [f"number {i}" for i in range(MAX_CHOICES)]


@pytest.mark.parametrize(
    ("wanted", "good", "bad"),
    [
        (grammar("json_object"), ['{"a": [1, {"b": null}]}', "{}"], ["[]", "1", '{"a": }', ""]),
        (grammar("json_schema", True), ["[]", "1"], ["x"]),
        (grammar("regex", r"\d{3}-\d{4}"), ["555-1234"], ["5555-123", "555-12345", ""]),
        (grammar("regex", "^(yes|no)$"), ["yes", "no"], ["yesno", "maybe"]),
        (grammar("choice", ["a/b", 'say "x"', "ä\n"]), ["a/b", 'say "x"', "ä\n"], ["a", "b", ""]),
        (grammar("choice", ["foo", "foobar"]), ["foo", "foobar"], ["foob"]),
        (grammar("choice", ["", "x"]), ["", "x"], ["xx"]),
        (grammar("choice", MANY), [MANY[0], MANY[77], MANY[-1]], ["number", "number 10000"]),
        (grammar("gbnf", 'root ::= "a" b+\nb ::= [0-9] | "x"'), ["a1x"], ["a", "1"]),
        (grammar("lark", 'start: "a" (B | "c")\nB: /b+/'), ["abb", "ac"], ["a", "abc"]),
        (grammar("lark", 'start: "x" <tool_call> "y"'), ["x<tool_call>y"], ["xy"]),
        (grammar("lark", 'start: %json {"type": "integer"} ";"'), ["12;"], ["1.5;", "12"]),
        (grammar("lark", 'start: "%json {}" // <nothing>\n'), ["%json {}"], ["%json", "{}"]),
    ],
    ids=lambda each: each.kind if isinstance(each, Grammar) else "",
)
def test_a_grammar_takes_what_it_describes(
    wanted: Grammar, good: list[str], bad: list[str]
) -> None:
    check(wanted, vocabulary())
    assert [text for text in good if not accepts(wanted, text)] == []
    assert [text for text in bad if accepts(wanted, text)] == []


LAYOUTS = {
    "compact": json.dumps({"name": "x", "age": 3}, separators=(",", ":")),
    "usual": json.dumps({"name": "x", "age": 3}),
    "indented": json.dumps({"name": "x", "age": 3}, indent=4),
    "deep": json.dumps({"name": "x", "age": 3}, indent=40),
    "tabs": json.dumps({"name": "x", "age": 3}, indent=10 * "\t"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_json_may_be_laid_out_as_people_do(layout: str) -> None:
    assert accepts(grammar("json_schema", PERSON), LAYOUTS[layout])


@pytest.mark.parametrize(
    "text",
    [
        ' {"name": "x", "age": 3}',
        '{"name":  "x", "age": 3}',
        '{\n\n"name": "x", "age": 3}',
        '{\n \t"name": "x", "age": 3}',
        "{\n" + " " * 41 + '"name": "x", "age": 3}',
        "{\n" + "\t" * 11 + '"name": "x", "age": 3}',
    ],
)
def test_whitespace_has_an_end(text: str) -> None:
    assert not accepts(grammar("json_schema", PERSON), text)


def test_whitespace_is_what_the_grammar_says() -> None:
    none, two = (grammar("json_schema", PERSON, whitespace) for whitespace in ("", "  "))
    compact_only = [layout == "compact" for layout in LAYOUTS]
    assert [accepts(none, text) for text in LAYOUTS.values()] == compact_only
    assert accepts(two, '{"name":  "x",  "age":  3}')
    embedded = grammar("lark", "start: %json " + json.dumps(PERSON), whitespace="")
    assert [accepts(embedded, text) for text in LAYOUTS.values()] == compact_only


def test_a_name_of_a_control_token_in_a_string_is_text() -> None:
    """The token itself would end the answer, or open a turn."""
    wanted = grammar("json_schema", {"const": "a <|im_end|> <tool_call> b"})
    matcher = compiled(wanted).matcher()
    seen: list[int] = []
    while not matcher.is_complete:
        forced = matcher.forced()
        assert forced, "the text is fixed"
        seen += forced
        assert matcher.consume(forced), matcher.error
    assert not set(seen) & vocabulary().control_ids


DEEP = '{"items":' * 3000 + "{}" + "}" * 3000


@pytest.mark.parametrize(
    ("wanted", "code", "words"),
    [
        (grammar("json_schema", "{"), "invalid_value", "schema is not valid JSON"),
        (grammar("json_schema", "[]"), "invalid_value", "object"),
        (grammar("json_schema", {"type": "strnig"}), "invalid_value", "strnig"),
        (grammar("json_schema", {"minLength": -1}), "invalid_value", "minLength"),
        (grammar("json_schema", {"format": "idn-email"}), "unsupported_parameter", "idn-email"),
        (grammar("json_schema", {"$ref": "#/nowhere"}), "invalid_value", "nowhere"),
        (grammar("json_schema", DEEP), "grammar_too_complex", "deep"),
        (grammar("json_schema", False), "invalid_value", "false"),
        (grammar("regex", "("), "invalid_value", "unclosed group"),
        (grammar("regex", "(?=a)b"), "invalid_value", "look-around"),
        (grammar("regex", "(" * 5000 + "a" + ")" * 5000), "invalid_value", ""),
        (grammar("choice", []), "invalid_value", "choices"),
        (grammar("choice", [1]), "invalid_value", "choices"),
        (grammar("choice", ["x"] * 10_001), "grammar_too_complex", "choices"),
        (grammar("lark", "start: x"), "invalid_value", "x"),
        (grammar("lark", ""), "invalid_value", ""),
        (grammar("lark", "start: <no_such_token>"), "invalid_value", "<no_such_token>"),
        (grammar("lark", 'start: %json {"a": }'), "invalid_value", "%json"),
        (grammar("lark", 'start: %json {"not": {}}'), "unsupported_parameter", "'not'"),
        (grammar("lark", "start: %json " + DEEP), "grammar_too_complex", "deep"),
        (grammar("lark", "start: " + "(" * 5000 + ")" * 5000), "grammar_too_complex", ""),
        (grammar("gbnf", "root ::= x"), "invalid_value", "x"),
        (grammar("gbnf", "root ::= " + "(" * 5000), "invalid_value", ""),
        (grammar("regex", "a" * (MAX_CHARS + 1)), "grammar_too_complex", "characters"),
    ],
)
def test_a_bad_grammar_is_refused(wanted: Grammar, code: str, words: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        check(wanted, vocabulary())
    assert refusal.value.code == code, refusal.value.message
    assert words in refusal.value.message
    assert len(refusal.value.message) < 500


def test_a_lone_surrogate_is_refused() -> None:
    for kind in ("json_schema", "regex", "choice", "lark", "gbnf"):
        with pytest.raises(BadRequest):
            check(Grammar(kind=kind, source='["\ud800"]'), vocabulary())


@pytest.mark.parametrize("unit", ['\\"', "\\/", "<[", "<a", "<", "%json ", "\\", '"a/<[', "/a\n"])
@pytest.mark.parametrize("beginning", ['start: "', "start: /", "start: <[", ""])
def test_a_part_that_is_never_closed_is_read_once(beginning: str, unit: str) -> None:
    """With a search for its end from every character this would take minutes."""
    source = beginning + unit * (200_000 // len(unit))
    assert library_source(Grammar(kind="lark", source=source), {}) == (
        LLMatcher.grammar_from_lark(source)
    )
    with pytest.raises(BadRequest):
        compile_grammar(Grammar(kind="lark", source=source), byte_vocabulary())

"""A grammar for text in a JSON string takes what is written for the texts that the grammar takes,
and nothing else.
"""

from __future__ import annotations

import json
from random import Random

import pytest

from radixserve.errors import BadRequest
from radixserve.grammar import Compiled, check, compile_grammar
from radixserve.grammar.calls import json_string, text_until
from radixserve.grammar.quoted_lark import quoted_lark
from radixserve.request import Grammar
from tests.grammar.accept import byte_vocabulary

# A made-up language for changes of files.
CHANGES = r"""
// a list of changes, each of one file
start: "<<< changes" LF change+ ">>> end" LF?
change: removed | written
removed: "remove " PATH LF
written: "write " PATH LF (kept | added | dropped)+
kept: " " REST LF
added: "+" REST LF -> line
dropped: "-" REST LF -> line
PATH: /[^\n"]+/
REST: /.*/   # anything up to the end of the line
%import common.LF
"""
PATCH = '<<< changes\nremove a b.txt\nwrite src/é.py\n \tx = "\\n"\n-y\n+\n>>> end'
EXPRESSIONS = [
    *(r".*", r"(?s:.*)", r"[^\n]*", r'["\\n]+', r"[\n]", r'[^"]*x', r"\s*\S+", r"\d+\D", r"\W+"),
    *(r"[\p{L} ]+", r"[^\p{L}]+", r"\p{L}", r'"a*"\n', r'(?i)a"\n', r"\x22\x{41}?", r"\\.", r"\/"),
    *(r"a{2,3}\/?", r'[\/"]*', r"(?s)a.(?-s:b.)", r"[\t\r]|b\\", r'(?P<x>a|")+', r"[^\[\]]+"),
    *(r'[]"]+', r'[\]"-]+', r"[a-x\x5c]*", r"\u0022|\U00000009", r"(?:[^x]\n)*", r"a|"),
]
LETTERS = 'abA"\\\n\t/x1é]-[ '


def matching(source: str) -> Compiled:
    return compile_grammar(Grammar(kind="lark", source=source), byte_vocabulary())


def quoted(definition: str) -> Compiled:
    return matching(f"start: {json_string(definition)}")


def takes(compiled: Compiled, text: str) -> bool:
    matcher = compiled.matcher()
    return matcher.consume(list(text.encode())) and matcher.is_accepting


def until(definition: str, end: str) -> Compiled:
    return matching(f"start: {text_until(definition, end)}")


def written(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@pytest.mark.parametrize("flags", ["", "s", "i"])
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_matches_what_is_written_for_its_texts(expression: str, flags: str) -> None:
    plain, inside = f"start: T\nT: /{expression}/{flags}", Random(expression)
    as_it_is, as_json = matching(plain), quoted(plain)
    for _ in range(80):
        text = "".join(inside.choices(LETTERS, k=inside.choice([0, 1, 1, 2, 2, 3, 4, 6])))
        assert takes(as_json, written(text)) == takes(as_it_is, text), text


def test_a_language_of_several_lines() -> None:
    as_it_is, as_json = matching(CHANGES), quoted(CHANGES)
    broken = [
        *(PATCH.replace("remove ", "remove"), PATCH.replace("+", "*"), PATCH.replace("y\n", "y")),
        *(PATCH + "\n\n", PATCH.removesuffix("end"), "", PATCH.replace("src", '"')),
    ]
    for text in (PATCH, PATCH + "\n", *broken):
        assert takes(as_it_is, text) == takes(as_json, written(text)) == (text not in broken)
    assert not takes(as_json, written(PATCH).replace("é", r"\u00e9")), "there is one way to write"


def test_a_text_may_also_stand_before_a_tag() -> None:
    before_tag = until(CHANGES, "\n</parameter>")
    assert takes(before_tag, f"{PATCH}\n</parameter>")
    assert takes(before_tag, f"{PATCH}\n\n</parameter>")
    assert not takes(before_tag, f"{PATCH[:-1]}\n</parameter>")
    anything = until("start: /(?s:.*)/", "\n</parameter>")
    assert takes(anything, "a\n</param\n</parameter>")
    assert not takes(anything, "a</parameter>\n</parameter>")
    assert not takes(anything, "a\n</parameter>b\n</parameter>")
    assert takes(until('start: "a".."c" /.*/i\n', ""), "bx")
    with pytest.raises(BadRequest, match="refer to themselves"):
        until('start: "(" start? ")"', "</x>")


@pytest.mark.parametrize(
    ("definition", "good", "bad"),
    [
        ('start: "a\\"b\\n"', ['a"b\n'], ["a", 'a"b']),
        ('start: "a\\"B\\n"i', ['A"b\n'], ["a", 'a"b\\N']),
        ('start: "!".."]"', ["!", '"', "\\", "]"], [" ", "^", "\n"]),
        ("start: A B\nA: ESCAPED_STRING\n%import common (ESCAPED_STRING, CNAME)\nB: CNAME",
         ['"x\\"y"z_1'], ['"x"', "z"]),
        ("start: N+\n%import common.SIGNED_NUMBER -> N\n%ignore / /", ["1 -2.5  3"], ["x"]),
        ('start: x*\nx: "\\u00e9" | "\\u007f" // "', ["éé\x7f", ""], ["e"]),
        ('start: "(" start? ")" | /[a-z]/ "\\n"', ["((a\n))", "()"], ["(a)", "("]),
        ('start: "x"~2..3 ["y"] "z" -> last', ["xxyz", "xxxz"], ["xz", "xxyy"]),
    ],
)  # fmt: skip
def test_every_part_of_the_syntax_is_written_as_json(
    definition: str, good: list[str], bad: list[str]
) -> None:
    compiled = quoted(definition)
    assert [text for text in good if not takes(compiled, written(text))] == []
    assert [text for text in bad if takes(compiled, written(text))] == []


@pytest.mark.parametrize("name", ["INT", "FLOAT", "NUMBER", "WORD", "WS", "NEWLINE", "SQL_COMMENT"])
def test_imported_terminals_are_those_of_the_library(name: str) -> None:
    source = f"start: {name}\n%import common.{name}"
    as_it_is, as_json, draw = matching(source), quoted(source), Random(name)
    for _ in range(80):
        text = "".join(draw.choices("0.9e+-a\n ", k=draw.randint(0, 4)))
        assert takes(as_json, written(text)) == takes(as_it_is, text), text


@pytest.mark.parametrize(
    ("definition", "code", "words"),
    [
        ("start: <|im_start|>", "unsupported_parameter", "im_start"),
        ('start: %json {"type": "object"}', "unsupported_parameter", "%json"),
        ("start: @other", "unsupported_parameter", "@other"),
        ("start: A\n%import python.NAME", "unsupported_parameter", "%import"),
        ("start[lazy]: /[^;]*;/", "unsupported_parameter", "start[lazy]"),
        ('start: "(" start ")" | /[^()]/', "unsupported_parameter", "refer to themselves"),
        ("start: A\n%import common.NO_SUCH", "unsupported_parameter", "NO_SUCH"),
        ("start: /[a&&b]/", "unsupported_parameter", "&&"),
        ("start: /[\\p{P}]/", "unsupported_parameter", "\\p{P}"),
        ("start: /\\bword/", "unsupported_parameter", "\\b"),
        ("start: /a b/x", "unsupported_parameter", "flag x"),
        ("start: /[z-a]/", "unsupported_parameter", "z-a"),
        ("start: /[a/", "invalid_value", "not valid"),
        ("start: /a)b/", "invalid_value", "not valid"),
        ("start: /a)/", "invalid_value", "not valid"),
        ("start: /(?=a)/", "invalid_value", "not valid"),
        ('start: "a', "invalid_value", "never closed"),
        ('start: "\\x"', "invalid_value", "not valid"),
        ('start: "ab".."c"', "invalid_value", "range"),
        ("start: nothing", "invalid_value", "nothing"),
        ("begin: /a/", "invalid_value", "start"),
        ("", "invalid_value", "start"),
        (f"start: {'(' * 200}/a/{')' * 200}", "grammar_too_complex", "complex"),
    ],
)
def test_what_cannot_be_written_so_is_refused(definition: str, code: str, words: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        check(Grammar(kind="lark", source=f"start: {json_string(definition)}"), byte_vocabulary())
    assert refusal.value.code == code
    assert words in refusal.value.message


@pytest.mark.parametrize("unit", ['"a\n', '\\"', "/[", "/(", "%import common(", "<a", "a[", "~ "])
def test_parts_that_are_never_closed_are_read_once(unit: str) -> None:
    """With a search for their ends from every character this would take minutes."""
    definition = "start: " + unit * (200_000 // len(unit))
    with pytest.raises(BadRequest):
        quoted(definition)


@pytest.mark.parametrize("last", ["x", "start"])
def test_many_rules_are_looked_at_once(last: str) -> None:
    rules = "\n".join(f"r{i}: r{i + 1}" for i in range(20_000))
    definition = f"start: r0\n{rules}\nr20000: {last}\nx: /a/"
    assert quoted_lark(definition).count("\n") >= 20_000

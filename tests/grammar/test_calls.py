"""Which outputs the grammars of tool calls take, with tags that are tokens or tags of text."""

from __future__ import annotations

from typing import Any

import pytest

from radixserve.grammar import check
from radixserve.grammar.calls import Layout, Tool, json_arguments, tool_calls
from radixserve.request import Grammar
from tests.grammar.accept import accepts, compiled, vocabulary

WEATHER = Tool(
    "weather",
    json_arguments(
        {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 9}},
            "required": ["city"],
            "additionalProperties": False,
        }
    ),
)
NOW = Tool("now", json_arguments({"type": "object", "additionalProperties": False}))
TAGS = Layout(
    before='<tool_call>\n{"name": "',
    between='", "arguments": ',
    after="}\n</tool_call>",
    separator="\n",
    trigger="<tool_call>",
)
LIST = Layout(
    opening="[TOOL_CALLS] [",
    before='{"name": "',
    between='", "arguments": ',
    after="}",
    separator=", ",
    closing="]",
)
A = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>'
B = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
BROKEN = {
    "an unknown tool": A.replace("weather", "whether"),
    "an argument of another tool": B.replace("{}}", '{"city": "x"}}'),
    "a wrong type": A.replace("3", '"3"'),
    "a value out of bounds": A.replace("3", "10"),
    "a missing argument": A.replace('"city": "Rome", ', ""),
    "no end": A.removesuffix("</tool_call>"),
}
TEXTS = {
    "": "",
    "text": "It rains, {sometimes}.",
    "A": A,
    "A B": f"{A}\n{B}",
    "text A": f"Let me see.\n{A}",
    "A text": f"{A} Done.",
    "A text B text": f"{A} and {B}.",
}


@pytest.fixture(params=[True, False], ids=["tags are tokens", "tags are text"])
def as_tokens(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def calls(as_tokens: bool, layout: Layout = TAGS, **options: Any) -> Grammar:
    control = {name: vocabulary(extra=as_tokens).token_ids[name] for name in _names(as_tokens)}
    wanted = tool_calls([WEATHER, NOW], layout, control=control, **options)
    check(wanted, vocabulary(extra=as_tokens))
    return wanted


def _names(as_tokens: bool) -> list[str]:
    return [name for name in vocabulary(extra=as_tokens).token_ids if name.startswith("<")]


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, {"A", "A B"}),
        ({"parallel": False}, {"A"}),
        ({"required": False}, set(TEXTS)),
        ({"required": False, "parallel": False}, {"", "text", "A", "text A"}),
    ],
)
def test_calls_and_text_come_as_the_choice_says(
    as_tokens: bool, options: dict[str, Any], taken: set[str]
) -> None:
    wanted = calls(as_tokens, **options)
    assert {name for name, text in TEXTS.items() if accepts(wanted, text, extra=as_tokens)} == taken


@pytest.mark.parametrize("broken", BROKEN)
def test_a_call_that_has_begun_is_one_of_a_tool(as_tokens: bool, broken: str) -> None:
    for required in (True, False):
        wanted = calls(as_tokens, required=required)
        assert not accepts(wanted, BROKEN[broken], extra=as_tokens)
        assert accepts(wanted, A, extra=as_tokens)


def test_one_tool_only(as_tokens: bool) -> None:
    wanted = tool_calls([NOW], TAGS, parallel=False)
    assert accepts(wanted, B, extra=False)
    assert not accepts(wanted, A, extra=False)


def test_reasoning_comes_first_and_is_free(as_tokens: bool) -> None:
    thought = "<think>The tool <tool_cal? No.</think>\n\n"
    for required in (True, False):
        wanted = calls(as_tokens, required=required, after="</think>")
        assert accepts(wanted, thought + A, extra=as_tokens)
        assert accepts(wanted, "</think>" + A, extra=as_tokens)
        assert not accepts(wanted, A, extra=as_tokens)
        assert accepts(wanted, thought + "text", extra=as_tokens) == (not required)


def test_free_text_may_hold_other_control_tokens(as_tokens: bool) -> None:
    wanted = calls(as_tokens, required=False)
    assert accepts(wanted, "<|im_start|>x<jupyter_code> y", extra=as_tokens)
    assert accepts(wanted, f"<|im_start|>x {A}", extra=as_tokens)


def test_calls_may_stand_in_one_list(as_tokens: bool) -> None:
    first = '{"name": "weather", "arguments": {"city": "Rome"}}'
    second = '{"name": "now", "arguments": {}}'
    one, two = f"[TOOL_CALLS] [{first}]", f"[TOOL_CALLS] [{first}, {second}]"
    for required in (True, False):
        wanted = calls(as_tokens, LIST, required=required)
        assert accepts(wanted, one, extra=as_tokens)
        assert accepts(wanted, two, extra=as_tokens)
        assert not accepts(wanted, one + second, extra=as_tokens) or not required
        single = calls(as_tokens, LIST, required=required, parallel=False)
        assert accepts(single, one, extra=as_tokens)
        assert not accepts(single, two, extra=as_tokens)


def test_arguments_need_not_be_json() -> None:
    parameters = Tool("now", r'"<parameter=zone>\n" /[A-Z]+/ "\n</parameter>\n"')
    layout = Layout(before="<function=", between=">\n", after="</function>")
    wanted = tool_calls([parameters], layout)
    good = "<function=now>\n<parameter=zone>\nUTC\n</parameter>\n</function>"
    assert accepts(wanted, good, extra=False)
    assert not accepts(wanted, good.replace("UTC", "utc"), extra=False)


def test_what_a_layout_leaves_open_is_all_that_is_drawn() -> None:
    """The tokens of the layout are forced."""
    wanted = calls(True, required=True, parallel=False)
    matcher = compiled(wanted).matcher()
    forced = matcher.forced()
    assert forced[0] == vocabulary().token_ids["<tool_call>"]
    assert len(forced) > 3

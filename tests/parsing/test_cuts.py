"""Whatever a text is cut into, its parts are the same; no text is lost and none raises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.parsing.formats import FORMATS
from radixserve.parsing.parts import CallArguments, CallBegun, Part, Reasoning, Text
from radixserve.parsing.reasoning import REASONING_FORMATS
from tests.parsing.cases import CASES, Case
from tests.parsing.transcripts import Setup, cut, joined, parsed, parts_of

SETUPS = [
    Setup(tool_format, reasoning, inside)
    for tool_format in (None, *FORMATS)
    for reasoning, inside in ((None, False), ("think", False), ("think", True), ("cohere", False))
]
for_every_setup = pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
for_every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
SPELLED = sorted(
    {marker for each in FORMATS.values() for marker in each.markers}
    | {marker for each in REASONING_FORMATS.values() for marker in each.markers}
    | {*"{}[]()\":,;=\\'\n ", "{}", "name", '"name"', '"arguments"', '"parameters"', "null"}
    | {"get_weather", '"get_weather"', "now", '"now"', '"city"', "city", "days", "True", "12"}
)
MARKUP = st.lists(st.sampled_from(SPELLED) | st.text(max_size=3), max_size=30).map("".join)


@for_every_case
def test_a_transcript_has_its_parts_whole(case: Case) -> None:
    setup, text, expected = case
    assert parsed(setup, [text]) == expected


@for_every_case
def test_a_transcript_has_its_parts_cut_at_any_character(case: Case) -> None:
    setup, text, expected = case
    for place in range(1, len(text)):
        assert parsed(setup, [text[:place], text[place:]]) == expected, place


@for_every_case
def test_a_transcript_has_its_parts_character_by_character(case: Case) -> None:
    setup, text, expected = case
    assert parsed(setup, list(text)) == expected


@given(st.sampled_from(sorted(CASES)), st.lists(st.integers(0, 200), max_size=12))
def test_a_transcript_has_its_parts_cut_anywhere(name: str, places: list[int]) -> None:
    setup, text, expected = CASES[name]
    assert parsed(setup, cut(text, places)) == expected


@for_every_setup
@settings(max_examples=40)
@given(text=MARKUP, places=st.lists(st.integers(0, 200), max_size=8))
def test_no_text_raises_and_cuts_change_nothing(setup: Setup, text: str, places: list[int]) -> None:
    assert parsed(setup, cut(text, places)) == parsed(setup, [text])


@settings(max_examples=300)
@given(st.sampled_from(sorted(CASES)), st.data())
def test_a_damaged_transcript_raises_nothing_and_cuts_change_nothing(
    name: str, data: st.DataObject
) -> None:
    setup, text, _ = CASES[name]
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    piece = data.draw(st.sampled_from(["", text[start:end] * 2, *SPELLED]))
    text = text[:start] + piece + text[end:]
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    assert parsed(setup, cut(text, places)) == parsed(setup, [text])


@for_every_setup
@settings(max_examples=40)
@given(text=st.text(st.characters(exclude_characters="<[{", codec="utf-8")))
def test_text_without_markup_is_the_answer(setup: Setup, text: str) -> None:
    setup = replace(setup, inside=False)
    assert "".join(p.text for p in parts_of(setup, list(text)) if isinstance(p, Text)) == text


@for_every_case
def test_what_has_been_sent_is_the_beginning_of_the_whole(case: Case) -> None:
    setup, text, expected = case
    for end in range(len(text)):
        sent = joined(setup.parser().push(text[:end]))
        if sent:
            assert sent[:-1] == expected[: len(sent) - 1]
            assert _begins(expected[len(sent) - 1], sent[-1])


def _begins(whole: Part, part: Part) -> bool:
    if isinstance(part, Text | Reasoning | CallArguments) and type(whole) is type(part):
        return whole.text.startswith(part.text)
    return whole == part


@for_every_case
def test_before_a_call_begins_all_is_text(case: Case) -> None:
    setup, text, _ = case
    for end in range(len(text)):
        parts = parsed(setup, [text[:end]])
        if setup.reasoning is None and not any(isinstance(part, CallBegun) for part in parts):
            assert parts == ([Text(text[:end])] if end else [])

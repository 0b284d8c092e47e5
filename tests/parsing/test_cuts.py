"""Whatever a text is cut into, its parts are the same; no text is lost and none raises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.parsing.formats import FORMATS
from radixserve.parsing.parts import CallArguments, CallBegun, Part, Text
from radixserve.parsing.reasoning import REASONING_FORMATS
from tests.parsing.cases import CASES, Case
from tests.parsing.transcripts import Setup, cut, parsed, parts_of

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


@for_every_setup
@settings(max_examples=40)
@given(text=st.text(st.characters(exclude_characters="<[{", codec="utf-8")))
def test_text_without_markup_is_the_answer(setup: Setup, text: str) -> None:
    setup = replace(setup, inside=False)
    assert "".join(p.text for p in parts_of(setup, list(text)) if isinstance(p, Text)) == text


@for_every_case
def test_what_a_shorter_text_calls_the_longer_one_calls_too(case: Case) -> None:
    setup, text, expected = case
    for end in range(len(text)):
        shorter = parsed(setup, [text[:end]])
        for number, part in enumerate(shorter):
            if isinstance(part, CallBegun):
                assert part in expected
                arguments = shorter[number + 1 : number + 2]
                whole = expected[expected.index(part) + 1]
                assert all(_begins(whole, each) for each in arguments), text[:end]


def _begins(whole: Part, part: Part) -> bool:
    """Whether they begin alike; the beginning of a closing tag may end the shorter text."""
    assert isinstance(whole, CallArguments)
    assert isinstance(part, CallArguments)
    return whole.text.startswith(part.text) or part.text.startswith(whole.text)


@for_every_case
def test_before_a_call_begins_all_is_text(case: Case) -> None:
    setup, text, _ = case
    for end in range(len(text)):
        parts = parsed(setup, [text[:end]])
        if setup.reasoning is None and not any(isinstance(part, CallBegun) for part in parts):
            assert parts == ([Text(text[:end])] if end else [])

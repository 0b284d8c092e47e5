from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixserve.text.stops import StopMatch, StopMatcher

SMALL = st.text("ab", max_size=24)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)


def first_complete(text: str, stops: list[str]) -> StopMatch | None:
    """The definition, by trying every end and, at each, every stop string, longest first."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return StopMatch(stop, end)
    return None


def longest_beginning(text: str, stops: list[str]) -> int:
    lengths = [n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])]
    return max(lengths, default=0)


@given(SMALL, STOPS)
def test_the_first_complete_stop_string_is_found(text: str, stops: list[str]) -> None:
    assert StopMatcher(stops).feed(text) == first_complete(text, stops)


@given(SMALL, STOPS, st.lists(st.integers(0, 24)))
def test_cutting_the_text_into_parts_changes_nothing(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    matcher = StopMatcher(stops)
    for start, end in pairwise(sorted([0, *(min(cut, len(text)) for cut in cuts), len(text)])):
        if (match := matcher.feed(text[start:end])) is not None:
            assert match._replace(end=start + match.end) == first_complete(text, stops)
            return
        assert matcher.num_held == longest_beginning(text[:end], stops)
    assert first_complete(text, stops) is None


def test_of_two_stop_strings_that_end_together_the_longer_is_reported() -> None:
    assert StopMatcher(["bc", "abc"]).feed("xabc") == StopMatch("abc", 4)


def test_no_stop_strings_hold_nothing() -> None:
    matcher = StopMatcher([])
    assert matcher.feed("anything") is None
    assert matcher.num_held == 0


def test_an_empty_stop_string_is_a_bug_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="empty stop string"):
        StopMatcher(["x", ""])


def test_a_long_repetitive_stop_string_costs_one_step_per_character() -> None:
    """The states move at most twice per character; a quadratic matcher would never end here."""
    stop = "a" * 50_000 + "b"
    matcher = StopMatcher([stop])
    for _ in range(20):
        assert matcher.feed("a" * 10_000) is None
    assert matcher.num_held == 50_000
    assert matcher.feed("b") == StopMatch(stop, 1)

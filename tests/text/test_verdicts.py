"""Verdicts belong to all members of a grammar; only some are kept, refusals for a while only."""

from __future__ import annotations

import pytest

from radixserve.errors import BadRequest
from radixserve.request import Grammar
from radixserve.text.verdicts import REFUSED_SECONDS, Verdicts


def test_grammars_that_differ_in_one_member_are_different() -> None:
    grammars = [
        Grammar(kind="regex", source="a"),
        Grammar(kind="lark", source="a"),
        Grammar(kind="regex", source="b"),
        Grammar(kind="regex", source="a", whitespace=""),
        Grammar(kind="regex", source="a", whitespace=" "),
        Grammar(kind="regex", source="\ud800"),
    ]
    for one in grammars:
        verdicts = Verdicts()
        verdicts.passed(one)
        assert [each for each in grammars if verdicts.has_passed(each)] == [one]


def test_the_grammar_that_was_used_longest_ago_is_forgotten() -> None:
    first, second, third = (Grammar(kind="regex", source=each) for each in "abc")
    verdicts = Verdicts(most=2)
    verdicts.passed(first)
    verdicts.passed(second)
    assert verdicts.has_passed(first)  # and is used by that
    verdicts.passed(third)
    assert [verdicts.has_passed(each) for each in (first, second, third)] == [True, False, True]


def test_a_refusal_is_repeated_for_a_while_and_may_turn_into_a_pass() -> None:
    now = 100.0
    verdicts = Verdicts(clock=lambda: now)
    bad = Grammar(kind="regex", source="(")
    verdicts.refused(bad, BadRequest("No.", code="invalid_value"))
    for _ in range(2):
        with pytest.raises(BadRequest) as refusal:
            verdicts.has_passed(bad)
        assert (refusal.value.message, refusal.value.code) == ("No.", "invalid_value")
        refusal.value.param = "grammar"  # the caller names its field, which is not remembered
    now += REFUSED_SECONDS
    assert not verdicts.has_passed(bad)
    verdicts.passed(bad)
    assert verdicts.has_passed(bad)

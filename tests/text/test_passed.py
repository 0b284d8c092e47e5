"""Grammars that have passed are known by all of their members, and only so many of them."""

from __future__ import annotations

from radixserve.request import Grammar
from radixserve.text.passed import PassedGrammars


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
        passed = PassedGrammars()
        passed.add(one)
        assert [each for each in grammars if each in passed] == [one]


def test_the_grammar_that_was_used_longest_ago_is_forgotten() -> None:
    first, second, third = (Grammar(kind="regex", source=each) for each in "abc")
    passed = PassedGrammars(most=2)
    passed.add(first)
    passed.add(second)
    assert first in passed  # and is used by that
    passed.add(third)
    assert [each in passed for each in (first, second, third)] == [True, False, True]

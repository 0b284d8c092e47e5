"""Choices, by hand and over drawn loads."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixserve.cluster.policy import POLICIES, SLACK, Asked, LeastCost, named

SECONDS = st.floats(0, 100)
WAITS = st.lists(SECONDS | st.just(math.inf), min_size=1, max_size=8)
KEYS = st.lists(st.integers(0, 1 << 62), max_size=5)


@st.composite
def prompts(draw: st.DrawFn) -> Asked:
    seconds = draw(SECONDS)
    saved = draw(st.dictionaries(st.integers(0, 7), st.floats(0, seconds)))
    return Asked(draw(KEYS), seconds, saved)


def among(asked: Asked, waits: list[float]) -> Asked:
    """Without servers that are not there."""
    return replace(asked, saved={each: s for each, s in asked.saved.items() if each < len(waits)})


@pytest.mark.parametrize("name", POLICIES)
@given(asked=prompts(), waits=WAITS)
def test_every_policy_chooses_one_that_may_be_chosen(
    name: str, asked: Asked, waits: list[float]
) -> None:
    policy = POLICIES[name]()
    for _ in range(3):
        chosen = policy.choose(among(asked, waits), waits)
        assert waits[chosen] < math.inf or min(waits) == math.inf


@given(asked=prompts(), waits=WAITS, alpha=st.floats(0.1, 20))
def test_the_cost_is_the_least_but_for_the_slack(
    asked: Asked, waits: list[float], alpha: float
) -> None:
    asked = among(asked, waits)
    costs = [
        wait + alpha * (asked.seconds - asked.saved.get(server, 0.0))
        for server, wait in enumerate(waits)
    ]
    chosen = LeastCost(alpha).choose(asked, waits)
    assert costs[chosen] <= (min(costs) + SLACK * alpha * asked.seconds) * (1 + 1e-9) + 1e-9


def test_a_long_prefix_is_worth_a_short_wait_and_no_long_one() -> None:
    asked = Asked([1], 1.0, {0: 0.9})
    assert LeastCost(3.0).choose(asked, [1.0, 0.0]) == 0
    assert LeastCost(3.0).choose(asked, [3.0, 0.0]) == 1


def test_gateways_agree_where_nobody_has_the_prompt() -> None:
    for key in range(20):
        asked = Asked([7, key, 99], 2.0, {})
        waits = ([0.0, 0.01, 0.02], [0.02, 0.0, 0.01])  # what two gateways know
        assert len({LeastCost().choose(asked, each) for each in waits}) == 1


def test_prompts_are_spread_and_stay_where_they_are_when_a_server_comes() -> None:
    before = {key: named([0, key], range(8)) for key in range(4000)}
    counts = Counter(before.values())
    assert min(counts.values()) > 400
    after = {key: named([0, key], range(9)) for key in before}
    moved = {key for key in before if before[key] != after[key]}
    assert {after[key] for key in moved} == {8}
    assert len(moved) < 4000 / 9 * 1.3

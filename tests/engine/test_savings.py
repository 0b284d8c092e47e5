"""What cached prefixes saved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixserve.engine.counters import HIT_TOKENS, SAVED_SECONDS
from radixserve.engine.savings import Savings


@given(st.lists(st.integers(0, 40_000), max_size=8))
def test_every_token_is_counted_once_at_its_depth(cached: list[int]) -> None:
    savings = Savings()
    for each in cached:
        savings.add(each, 0.0)
    numbers = savings.numbers()
    for (depth,) in HIT_TOKENS.series():
        low, _, high = depth.partition("-")
        inside = range(int(low), int(high or 40_000) + 1)
        assert numbers.get(HIT_TOKENS.key(depth), 0) == sum(
            len(range(max(0, inside.start), min(each, inside.stop))) for each in cached
        )


def test_time_is_counted_at_the_speed_of_then_and_not_while_it_is_unknown() -> None:
    savings = Savings()
    savings.add(1000, 0.0)
    savings.add(1000, 500.0)
    savings.add(300, 100.0)
    assert savings.numbers()[SAVED_SECONDS.key()] == pytest.approx(5.0)

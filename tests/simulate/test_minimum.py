from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.cache.policies.table import POLICIES
from radixserve.prefix import Prefix
from radixserve.simulate.minimum import NEVER, minimum, next_uses
from radixserve.simulate.replay import Traffic, replay


def traffic(prompts: list[list[int]]) -> Traffic:
    num_blocks = sum(map(len, prompts))
    made = tuple(Prefix.of("", each) for each in prompts)
    return Traffic(made, 512, num_blocks, len({block for each in prompts for block in each}))


def most_hits(keys: list[int], budget: int) -> int:
    """By trying everything that a cache of objects could keep after each access."""
    best = {frozenset[int](): 0}
    for key in keys:
        after: dict[frozenset[int], int] = {}
        for kept, hits in best.items():
            now = hits + (key in kept)
            could = kept | {key}
            for size in range(min(budget, len(could)) + 1):
                for chosen in map(frozenset, combinations(sorted(could), size)):
                    after[chosen] = max(after.get(chosen, 0), now)
        best = after
    return max(best.values())


@settings(deadline=None)
@given(keys=st.lists(st.integers(0, 4), min_size=1, max_size=9), budget=st.integers(1, 3))
def test_no_choice_of_single_blocks_gives_more_hits(keys: list[int], budget: int) -> None:
    best = minimum(traffic([[key] for key in keys]), budget, lambda: None)
    assert round(best.hits * len(keys)) == most_hits(keys, budget)


def test_a_next_use_is_the_number_of_the_prompt() -> None:
    assert next_uses([[1, 2], [1], [3, 2]]) == [[1, 2], [NEVER], [NEVER, NEVER]]


@settings(deadline=None)
@given(keys=st.lists(st.integers(0, 9), min_size=1, max_size=60), budget=st.integers(1, 8))
def test_no_policy_beats_it_over_single_blocks(keys: list[int], budget: int) -> None:
    requests = traffic([[key] for key in keys])
    best = minimum(requests, budget, lambda: None).hits
    assert all(replay(requests, name, budget, lambda: None).hits <= best for name in POLICIES)


def test_only_blocks_without_a_gap_before_them_hit() -> None:
    requests = traffic([[1, 2, 3], [9, 3], [1, 2, 3]])
    assert minimum(requests, 3, lambda: None).hits == 3 / 8
    assert minimum(requests, 2, lambda: None).hits == 1 / 8  # keeps 1 and 3; 1 and 2 were better

from __future__ import annotations

import pytest

from radixserve.loadtest.trace import Line
from radixserve.simulate.replay import EVEN_DEPTH, Traffic, outcome, replay


def line(*blocks: int, block_tokens: int = 512) -> Line:
    return Line(1, 0.0, block_tokens * len(blocks), 1, blocks, block_tokens)


def test_blocks_are_numbered_as_they_appear() -> None:
    traffic = Traffic.of([line(2**62, 5), line(2**62, 7)])
    assert [list(memoryview(each.tokens).cast("i")) for each in traffic.prompts] == [[0, 1], [0, 2]]
    assert (traffic.num_blocks, traffic.num_distinct, traffic.block_tokens) == (4, 3, 512)


@pytest.mark.parametrize("lines", [[], [line(1), line(1, block_tokens=64)]])
def test_a_trace_has_blocks_of_one_size(lines: list[Line]) -> None:
    with pytest.raises(ValueError, match="blocks of one size"):
        Traffic.of(lines)


def test_hits_are_the_leading_blocks_that_are_cached() -> None:
    steps: list[None] = []
    traffic = Traffic.of([line(1, 2, 3), line(1, 2, 4), line(1, 2, 3)])
    assert replay(traffic, "lru", 10, lambda: steps.append(None)).hits == (2 + 3) / 9
    assert replay(traffic, "lru", 3, lambda: None).hits == (2 + 2) / 9
    assert len(steps) == 3


def test_a_prompt_beyond_the_budget_is_cut() -> None:
    traffic = Traffic.of([line(1, 2, 3), line(1, 2, 3)])
    assert replay(traffic, "lru", 2, lambda: None).hits == 2 / 6


def test_computing_grows_with_the_depth() -> None:
    blocks = tuple(range(2 * EVEN_DEPTH // 512))
    traffic = Traffic.of([line(*blocks)])
    assert outcome(traffic, [len(blocks) // 2]).saved == pytest.approx(1.5 / 4)
    assert outcome(traffic, [len(blocks)]).saved == 1

"""Blocks of the CUDA kernel: every row is in one block, and spread contexts have room for each of
their splits.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radixserve.kernels.cuda.attention_work import (
    MAX_PLACES,
    SPLIT,
    Blocks,
    Cut,
    entries_per_block,
    lanes_for,
)
from radixserve.kernels.step import Spans

CPU = torch.device("cpu")


def spans_of(chunks: list[tuple[int, int]]) -> Spans:
    """Chunks (start, count), packed."""
    start, count = np.array(chunks, np.int64).T
    return Spans(np.cumsum(count) - count, count, np.cumsum(start + count) - (start + count), start)


@given(
    st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 80)), min_size=1, max_size=30),
    st.integers(1, 64),
    st.integers(1, 8),
)
def test_every_row_is_in_one_block_and_no_two_splits_share_a_place(
    chunks: list[tuple[int, int]], rows_per_block: int, kv_heads: int
) -> None:
    spans = spans_of(chunks)
    cut = Cut.of(spans, rows_per_block, kv_heads)
    taken = np.zeros(cut.num_places, bool)
    owner = np.repeat(np.arange(len(spans)), spans.count)
    next_row = 0
    for row, count, begin, start, place in zip(*cut.blocks, strict=True):
        assert row == next_row
        assert 1 <= count <= rows_per_block
        assert set(owner[row : row + count]) == {owner[row]}, "one sequence"
        assert begin == spans.begin[owner[row]]
        assert start == spans.start[owner[row]] + row - spans.row[owner[row]]
        next_row += count
        if place >= 0:
            room = count * -(-(start + count) // SPLIT)
            assert not taken[place : place + room].any()
            taken[place : place + room] = True
    assert next_row == spans.count.sum()
    assert taken.all()
    assert cut.num_places <= MAX_PLACES


@given(
    st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 80)), min_size=1, max_size=30),
    st.integers(1, 64),
)
def test_the_combining_program_looks_where_the_attending_one_stored(
    chunks: list[tuple[int, int]], rows_per_block: int
) -> None:
    cut = Cut.of(spans_of(chunks), rows_per_block, 1)
    stored = {}
    for row, count, _, start, place in zip(*cut.blocks, strict=True):
        splits = -(-(start + count) // SPLIT)
        for member in range(count):
            stored[row + member] = (start + member, place + member * splits if place >= 0 else -1)
    found = zip(*cut.rows, strict=True)
    assert {row: (position, place) for row, position, place in found} == stored


def test_a_lone_decode_is_spread_over_its_splits() -> None:
    cut = Cut.of(spans_of([(1099, 1)]), 21, 3)
    assert cut.blocks == (0, 1, 0, 1099, 0)
    assert cut.num_places == 5
    blocks = Blocks.of(cut, 3, CPU)
    assert (blocks.lanes, blocks.rows) == (5, (0, 1099, 0))


def test_a_context_of_one_split_needs_no_combining() -> None:
    blocks = Blocks.of(Cut.of(spans_of([(255, 1), (0, 21)]), 21, 3), 3, CPU)
    assert (blocks.lanes, blocks.num_places, len(blocks.rows.row)) == (1, 0, 0)
    assert blocks.blocks.place.tolist() == [-1, -1]


def test_enough_blocks_are_not_spread() -> None:
    cut = Cut.of(spans_of([(5000, 1)] * 128), 21, 8)
    assert (cut.num_places, lanes_for(128, 8), lanes_for(1, 8)) == (0, 1, 64)


def test_the_longest_contexts_are_spread_first_while_there_is_room() -> None:
    long, short = (SPLIT * 3000 - 1, 1), (SPLIT * 1000 - 1, 1)
    cut = Cut.of(spans_of([short, short, long]), 1, 1)
    assert cut.blocks.place.tolist() == [3000, -1, 0]
    assert cut.num_places == 4000


@pytest.mark.parametrize(
    ("group", "half", "full"),
    [(1, 64, 16), (3, 64, 16), (16, 64, 16), (17, 64, 32), (71, 128, 128)],
)
def test_a_block_holds_at_least_one_row_of_any_group(group: int, half: int, full: int) -> None:
    assert entries_per_block(group, torch.bfloat16) == half
    assert entries_per_block(group, torch.float32) == full

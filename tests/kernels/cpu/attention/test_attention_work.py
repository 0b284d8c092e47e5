"""Work items: every row meets each of its tiles exactly once, and equal slots are loaded once for
all.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.kernels.arrays import Ints
from radixserve.kernels.cpu.attention import call
from radixserve.kernels.cpu.attention.block import StepBlock
from radixserve.kernels.cpu.attention.work import TILE, TileWork, kind_of_step, leaders_of
from radixserve.kernels.step import Spans


def spans_of(chunks: list[tuple[int, int]]) -> Spans:
    """Chunks (start, count), packed."""
    start, count = np.array(chunks, np.int64).T
    return Spans(np.cumsum(count) - count, count, np.cumsum(start + count) - (start + count), start)


def table_of(spans: Spans, prefix: int) -> Ints:
    """Slots: the first `prefix` positions are everybody's, the others their own."""
    tables, free = [], prefix
    for stop in spans.stop:
        own = max(0, int(stop) - prefix)
        tables.append(np.concatenate([np.arange(min(prefix, stop)), np.arange(free, free + own)]))
        free += own
    return np.concatenate(tables).astype(np.int32)


def meetings(work: TileWork, table: Ints) -> Counter[tuple[int, int, bytes]]:
    """(row, tile, slots) of every item."""
    met: Counter[tuple[int, int, bytes]] = Counter()
    for item in work.items:
        for row in work.rows[item["first"] :][: item["num_rows"]].tolist():
            for t in range(item["tile"], item["end_tile"]):
                slots = table[item["begin"] :][t * TILE : min(item["stop"], (t + 1) * TILE)]
                met[row, t, slots.tobytes()] += 1
    return met


def expected(spans: Spans, table: Ints, window: int) -> dict[tuple[int, int], Ints]:
    """(row, tile) -> the slots that the row must meet there."""
    wanted = {}
    for row, count, begin, start in zip(
        *(column.tolist() for column in spans.columns), strict=True
    ):
        for i in range(count):
            first = max(0, start + i + 1 - window)
            for t in range(first // TILE, (start + i) // TILE + 1):
                wanted[row + i, t] = table[
                    begin + t * TILE : begin + min(start + i + 1, (t + 1) * TILE)
                ]
    return wanted


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 80)), min_size=1, max_size=8),
    st.integers(0, 300),
    st.integers(1, 8),
    st.none() | st.integers(1, 400),
)
def test_every_row_meets_each_of_its_tiles_once(
    chunks: list[tuple[int, int]], prefix: int, group: int, window: int | None
) -> None:
    spans = spans_of(chunks)
    table = table_of(spans, prefix)
    met = meetings(TileWork.of(spans, leaders_of(spans, table), group, window), table)
    assert set(met.values()) == {1}
    by_place = {(row, tile): np.frombuffer(slots, np.int32) for row, tile, slots in met}
    for place, slots in expected(spans, table, window or 10**6).items():
        np.testing.assert_array_equal(by_place[place][: len(slots)], slots)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=5),
    st.integers(0, 300),
    st.none() | st.integers(1, 400),
)
def test_the_work_of_a_step_moves_on_to_the_next_one(
    starts: list[int], prefix: int, window: int | None
) -> None:
    """Decode steps one after the other: work that moved on is that of the step itself."""
    kind: bytes | None = None
    work, moved = None, 0
    for step in range(66):
        spans = spans_of([(start + step, 1) for start in starts])
        leaders = leaders_of(spans, table_of(spans, prefix))
        before, kind = kind, kind_of_step(spans, leaders, window)
        fresh = TileWork.of(spans, leaders, 2, window)
        if work is not None and before == kind:
            work.move_on(spans)
            moved += 1
        else:
            work = fresh
        for field in ("items", "rows", "places", "split_rows", "opens", "max_rows"):
            np.testing.assert_array_equal(getattr(work, field), getattr(fresh, field))
    assert moved > 40


@pytest.mark.parametrize("missing", ["of", "_make_partials"])
def test_work_that_could_not_be_made_is_made_when_the_step_is_tried_again(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may lack at any place; then the engine tries the same step once more."""
    block = StepBlock(heads=4, kv_heads=2, width=16)
    held = call._WindowWork(None, block)
    for starts in ([70], [640] * 8):
        spans = spans_of([(start, 1) for start in starts])
        table = table_of(spans, 0)
        positions = spans.start.astype(np.int32)
        plan: Any = SimpleNamespace(spans=spans, table=table, positions=positions)
        with monkeypatch.context() as patched:
            where: Any = TileWork if missing == "of" else held
            patched.setattr(where, missing, no_memory)
            with pytest.raises(MemoryError):
                held.hold(plan, leaders_of(spans, table), 2)
        held.hold(plan, leaders_of(spans, table), 2)
        fresh = TileWork.of(spans, leaders_of(spans, table), 2, None)
        np.testing.assert_array_equal(held._work.items, fresh.items)
        assert len(held._partials) == len(fresh.opens) * 4 * (16 + 2)


def no_memory(*_: Any) -> None:
    raise MemoryError


def test_sixteen_sequences_over_one_prefix_load_it_once() -> None:
    spans = spans_of([(1123, 1)] * 16)
    work = TileWork.of(spans, leaders_of(spans, table_of(spans, 1024)), 3)
    loads = work.items["end_tile"] - work.items["tile"]
    assert loads.sum() == 16 + 16 * 2  # 16 shared tiles, and two private ones for each sequence
    assert work.items[loads == 4]["num_rows"].tolist() == [16] * 4


def test_whole_groups_are_shared_as_one_and_the_group_where_branches_part_tile_by_tile() -> None:
    spans = spans_of([(512, 1), (512, 1), (512, 1)])
    table = table_of(spans, 512)
    for sequence in (1, 2):
        table[513 * sequence + 4 * TILE + 130 : 513 * (sequence + 1)] += (
            1000 * sequence
        )  # part in tile 6
    items = TileWork.of(spans, leaders_of(spans, table), 1).items
    items = items[items["end_tile"] <= 8]
    shared = sorted(items[["tile", "end_tile", "num_rows"]].tolist())
    assert shared == [
        (0, 4, 3),
        (4, 5, 2),
        (4, 8, 1),
        (5, 6, 2),
        (6, 7, 1),
        (6, 7, 1),
        (7, 8, 1),
        (7, 8, 1),
    ]


def test_sequences_that_hold_equal_slots_at_other_positions_do_not_share() -> None:
    spans = spans_of([(128, 1), (128, 1)])
    table = np.concatenate([np.arange(129), np.roll(np.arange(129), 64)]).astype(np.int32)
    assert (TileWork.of(spans, leaders_of(spans, table), 1).items["num_rows"] == 1).all()


def test_a_window_leaves_out_what_is_before_it() -> None:
    """A step at 32k costs what its window costs: tiles of the window and one more for its edge."""
    spans = spans_of([(32768, 1), (32000, 300)])
    leaders = leaders_of(spans, table_of(spans, 0))
    items = TileWork.of(spans, leaders, 1, window=512).items
    assert (items["tile"] >= (32000 + 1 - 512) // TILE).all()
    assert TileWork.of(spans, leaders, 1, window=512).num_tiles < 80
    assert TileWork.of(spans, leaders, 1).num_tiles > 2000

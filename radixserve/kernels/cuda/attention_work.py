"""Divides one step of CUDA attention into blocks of rows, and decides whose contexts are spread
over many programs.

This decides about speed only; the kernel's numbers do not depend on it. A block is as many
neighbouring rows of one sequence as one dot product of the kernel holds. With few blocks (decode,
small batches) their contexts are spread: each split of 256 positions goes to another program, which
stores its partial sums in a place of its own, and they are combined afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from radixserve.kernels.arrays import Longs
from radixserve.kernels.step import Spans
from radixserve.tensors.transfer import upload

TILE = 64
SPLIT = 256  # positions; at absolute multiples, because where sums are cut changes their bits
_PROGRAMS = 1024  # per layer: so many keep any device busy
_MAX_LANES = 64  # programs that share one block and key head
MAX_PLACES = 4096  # for partial sums: bounds their memory (32 heads of 128: 64 MiB)
# Rows times heads per key head that one dot product holds.
_ENTRIES = {torch.float32: 16}
_HALF_ENTRIES = 64  # for the other dtypes


def entries_per_block(group: int, dtype: torch.dtype) -> int:
    """How many query vectors a block holds, a power of two. `group` is the number of query heads
    per key head.
    """
    return max(_ENTRIES.get(dtype, _HALF_ENTRIES), 1 << (group - 1).bit_length())


def lanes_for(num_blocks: int, kv_heads: int) -> int:
    """Over how many programs one block and key head may be spread."""
    return max(1, min(_MAX_LANES, _PROGRAMS // (num_blocks * kv_heads)))


class BlockColumns(NamedTuple):
    """Blocks as columns, int64 [blocks] each: arrays on the host, tensors on the device."""

    row: Any  # the first row
    count: Any  # number of rows
    begin: Any  # where the sequence begins in the table
    start: Any  # position of the first row
    place: Any  # index of its first partial sum; -1 if its splits are not spread


class RowColumns(NamedTuple):
    """Rows as columns, int64 [rows] each: arrays on the host, tensors on the device."""

    row: Any
    position: Any
    place: Any  # index of its first partial sum; -1 if its splits are not spread


@dataclass(frozen=True, slots=True)
class Cut:
    """The blocks of one step, on the host."""

    blocks: BlockColumns
    rows: RowColumns
    num_places: int

    @classmethod
    def of(cls, spans: Spans, rows_per_block: int, kv_heads: int) -> Cut:
        """Cut `spans` into blocks of at most `rows_per_block` rows. Cost: O(rows)."""
        row, count, begin, start = _blocks(spans, rows_per_block)
        splits = -(-(start + count) // SPLIT)
        place, num_places = _places(count, splits, lanes_for(len(row), kv_heads))
        member = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        row_place = np.repeat(place, count) + member * np.repeat(splits, count)
        rows = RowColumns(
            row=np.repeat(row, count) + member,
            position=np.repeat(start, count) + member,
            place=np.where(np.repeat(place >= 0, count), row_place, -1),
        )
        return cls(BlockColumns(row, count, begin, start, place), rows, num_places)


def _blocks(spans: Spans, size: int) -> tuple[Longs, Longs, Longs, Longs]:
    """The columns row, count, begin and start of the spans, cut into at most `size` rows each;
    `begin` stays that of the sequence.
    """
    blocks = -(-spans.count // size)
    owner = np.repeat(np.arange(len(spans)), blocks)
    offset = (np.arange(len(owner)) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * size
    count = np.minimum(size, spans.count[owner] - offset)
    return spans.row[owner] + offset, count, spans.begin[owner], spans.start[owner] + offset


def _places(count: Longs, splits: Longs, lanes: int) -> tuple[Longs, int]:
    """The index of each block's first partial sum, -1 for those that are not spread; and how many
    partial sums there are. Blocks with more than one split are spread, longest contexts first, up
    to MAX_PLACES.
    """
    place = np.full(len(count), -1, np.int64)
    order = np.argsort(-splits, kind="stable")
    order = order[splits[order] > 1]
    ends = np.cumsum((count * splits)[order])
    fitting = int(np.searchsorted(ends, MAX_PLACES, side="right")) if lanes > 1 else 0
    chosen = order[:fitting]
    place[chosen] = ends[:fitting] - (count * splits)[chosen]
    return place, int(ends[fitting - 1]) if fitting else 0


class SplitSums:
    """float32 memory for partial sums, shared by all layers: sums of V, largest scores, sums of
    weights.
    """

    def __init__(self) -> None:
        self._tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def tensors(
        self, count: int, width: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The three tensors [count, width], [count], [count]. The first call allocates them; later
        calls get the same ones and must not need more.
        """
        if self._tensors is None:
            shapes = ((count, width), (count,), (count,))
            acc, peak, weight = (
                torch.empty(shape, dtype=torch.float32, device=device) for shape in shapes
            )
            self._tensors = (acc, peak, weight)
        return self._tensors


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of one step, on the device."""

    blocks: BlockColumns
    rows: RowColumns  # those that have partial sums to combine
    lanes: int
    num_places: int
    sums: SplitSums

    @classmethod
    def of(cls, cut: Cut, kv_heads: int, device: torch.device) -> Blocks:
        """Upload `cut`; of its rows only those that have partial sums to combine."""
        blocks, spread = cut.blocks, cut.rows.place >= 0
        stop = (blocks.start + blocks.count)[blocks.place >= 0]
        most = int((-(-stop // SPLIT)).max(initial=1))
        lanes = min(most, lanes_for(len(blocks.row), kv_heads))
        rows = [column[spread] for column in cut.rows]
        return cls(
            BlockColumns(*_upload(blocks, device)),
            RowColumns(*_upload(rows, device)),
            lanes,
            cut.num_places,
            SplitSums(),
        )


def _upload(columns: Sequence[Longs], device: torch.device) -> list[torch.Tensor]:
    """Columns of equal length on the device, in one copy. Each begins at a multiple of 16 bytes:
    Triton would compile another program for other addresses.
    """
    count = len(columns[0])
    host = np.zeros((len(columns), count + count % 2), np.int64)
    host[:, :count] = columns
    return [column[:count] for column in upload(host, device)]

"""Who computes what in one step of CUDA attention: blocks of rows, and which of them spread over
many programs.

Decides about speed only; the kernel's numbers do not depend on it. A block is as many neighbouring
rows of one sequence as one dot product of the kernel holds. With few blocks (decode, small batches)
their contexts are spread: each split of 256 positions goes to another program, leaves its sums in a
place of its own, and they are combined afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from radixserve.model.host import upload
from radixserve.model.tiles import Longs, Spans

TILE = 64
SPLIT = 256  # positions; absolute, because where sums are cut decides about bits
_PROGRAMS = 1024  # with so many programs per layer no device is idle
_MAX_LANES = 64
MAX_PLACES = 4096  # of partial sums: bounds their memory (32 heads of 128: 64 MiB)
_ENTRIES = {
    torch.float32: 16
}  # rows times heads per key head that one dot product holds; otherwise:
_HALF_ENTRIES = 64


def entries_per_block(group: int, dtype: torch.dtype) -> int:
    """How many query vectors a block holds, a power of two; `group` is the number of query heads
    per key head.
    """
    return max(_ENTRIES.get(dtype, _HALF_ENTRIES), 1 << (group - 1).bit_length())


def lanes_for(num_blocks: int, kv_heads: int) -> int:
    """Over how many programs one block and key head may be spread."""
    return max(1, min(_MAX_LANES, _PROGRAMS // (num_blocks * kv_heads)))


@dataclass(frozen=True, slots=True)
class Cut:
    """One step's blocks as numbers."""

    # [blocks, 5]: first row, number of rows, table begin, first row's position, place or -1
    blocks: Longs
    rows: (
        Longs  # [rows, 3]: row, its position, place of its first split or -1: it needs no combining
    )
    num_places: int

    @classmethod
    def of(cls, spans: Spans, rows_per_block: int, kv_heads: int) -> Cut:
        """Cost: O(rows)."""
        row, count, begin, start = _blocks(spans, rows_per_block)
        splits = -(-(start + count) // SPLIT)
        place, num_places = _places(count, splits, lanes_for(len(row), kv_heads))
        member = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        row_place = np.repeat(place, count) + member * np.repeat(splits, count)
        split = np.repeat(place >= 0, count)
        rows = (
            np.repeat(row, count) + member,
            np.repeat(start, count) + member,
            np.where(split, row_place, -1),
        )
        return cls(np.stack([row, count, begin, start, place], 1), np.stack(rows, 1), num_places)


def _blocks(spans: Spans, size: int) -> tuple[Longs, Longs, Longs, Longs]:
    """Spans cut into at most `size` rows each: the columns of `Spans`; `begin` stays that of the
    sequence.
    """
    blocks = -(-spans.count // size)
    owner = np.repeat(np.arange(len(spans)), blocks)
    offset = (np.arange(len(owner)) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * size
    count = np.minimum(size, spans.count[owner] - offset)
    return spans.row[owner] + offset, count, spans.begin[owner], spans.start[owner] + offset


def _places(count: Longs, splits: Longs, lanes: int) -> tuple[Longs, int]:
    """Places for the blocks with more than one split, the longest contexts first, while there are
    any.
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
    """Float32 memory for the sums of splits, the same for all layers: of V, their largest scores,
    of weights.
    """

    def __init__(self) -> None:
        self._tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def tensors(
        self, count: int, width: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[count, width], [count], [count]; taken at the first call, which says how much
        for all.
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
    """One step's blocks on the device."""

    blocks: torch.Tensor  # int64, as in `Cut`
    rows: torch.Tensor  # int64, as in `Cut`
    lanes: int
    num_places: int
    sums: SplitSums

    @classmethod
    def of(cls, cut: Cut, kv_heads: int, device: torch.device) -> Blocks:
        """Only rows that need combining go to the device."""
        split = cut.blocks[cut.blocks[:, 4] >= 0]
        most = int((-(-(split[:, 3] + split[:, 1]) // SPLIT)).max(initial=1))
        lanes = min(most, lanes_for(len(cut.blocks), kv_heads))
        rows = cut.rows[cut.rows[:, 2] >= 0]
        return cls(
            upload(cut.blocks, device), upload(rows, device), lanes, cut.num_places, SplitSums()
        )

"""The memory that each thread of the attention kernel works in: taken by who calls the kernel, read
by the kernel.

A thread finds its parts as address and length of each, as the kernel finds everything else. Every
part begins at a cache line: a vector that lies across two costs twice.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from radixserve.model.compiled import LINE_BYTES, compiled, floats_in, ints_in, longs_in
from radixserve.model.lanes import LANES
from radixserve.model.tiles import TILE

ROWS = 6
"""Query rows of a block: what `multiply_6` keeps in registers."""


class Sums(NamedTuple):
    """Weighted sums of V, with the largest score and the sum of weights they are relative to, per
    row.
    """

    values: Any  # flat
    peaks: Any
    weights: Any


class Scratch(NamedTuple):
    """One thread's memory."""

    queries: Any  # the item's query rows, scaled
    ends: Any  # int64: how many positions each of them sees
    places: Any  # int64: where its result goes: in the output, or among the contributions
    slots: Any  # int32: of a tile's last positions, the last one again and again behind it
    order: Any  # int32: 0, 1, 2, ...
    keys: Any  # the tile's K, transposed
    values: Any  # the tile's V, rows padded to whole panels
    scores: Any  # of one block
    old: Any  # of one block: what the sums so far are multiplied by
    new: Any  # of one block: what the tile's contributions are multiplied by
    sums: Sums  # of the item's rows: the group's tiles so far
    total: Sums  # of the item's rows: all groups so far
    finished: Sums  # of one row's heads: all groups so far, and behind them one group


_PARTS = 19  # arrays of a `Scratch`


class ScratchMemory:
    """For some threads, for items of at most `most` query rows; kept alive until the kernel has
    run.
    """

    def __init__(self, threads: int, most: int, heads: int, k_dim: int, width: int) -> None:
        counts = np.array(
            [
                most * k_dim,
                most,
                most,
                LANES,
                max(TILE, k_dim),
                k_dim * TILE,
                TILE * width,
                ROWS * TILE,
                ROWS,
                ROWS,
            ]
            + [rows * size for rows in (most, most, 2 * heads) for size in (width, 1, 1)]
        )
        sizes = -(-counts * 8 // LINE_BYTES) * LINE_BYTES  # bytes; room for int64 everywhere
        self._memory = np.empty(threads * int(sizes.sum()) + LINE_BYTES, np.uint8)
        begin = -(-self._memory.ctypes.data // LINE_BYTES) * LINE_BYTES
        self.block: npt.NDArray[np.int64] = np.empty((threads, _PARTS, 2), np.int64)
        self.block[:, :, 0] = begin + (
            np.arange(threads)[:, None] * sizes.sum() + np.cumsum(sizes) - sizes
        )
        self.block[:, :, 1] = counts


@compiled
def _sums(block: Any, index: int) -> Sums:
    return Sums(floats_in(block, index), floats_in(block, index + 1), floats_in(block, index + 2))


@compiled
def scratch_of(blocks: Any, thread: int) -> Scratch:
    """That thread's, of `ScratchMemory.block`, flat."""
    b = blocks[thread * 2 * _PARTS :][: 2 * _PARTS]
    scratch = Scratch(
        floats_in(b, 0),
        longs_in(b, 1),
        longs_in(b, 2),
        ints_in(b, 3),
        ints_in(b, 4),
        floats_in(b, 5),
        floats_in(b, 6),
        floats_in(b, 7),
        floats_in(b, 8),
        floats_in(b, 9),
        _sums(b, 10),
        _sums(b, 13),
        _sums(b, 16),
    )
    for i in range(scratch.order.shape[0]):
        scratch.order[i] = i
    return scratch

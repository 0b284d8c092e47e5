"""The scratch memory of the attention kernel, a part for each thread. The kernel's caller allocates
it, and the kernel finds it by address.

Each thread's part is an array of (address, length) pairs, one for each field of `Scratch`. Every
array begins at a cache line, because reading a vector that lies across two lines costs twice.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from radixserve.kernels.cpu.attention_work import TILE
from radixserve.kernels.cpu.compile import LINE_BYTES, compiled, floats_in, ints_in, longs_in
from radixserve.kernels.cpu.vector import LANES

ROWS = 6
"""Query rows of a block: as many as `multiply_6` keeps in registers."""


class Sums(NamedTuple):
    """Per row: the weighted sum of V, and the largest score and the sum of weights that it is
    relative to.
    """

    values: Any  # [rows * width]
    peaks: Any  # [rows]: largest scores
    weights: Any  # [rows]: sums of exp(score - peak)


class Scratch(NamedTuple):
    """One thread's memory. A "row" is a query row at one head; "group" is a group of tiles. `width`
    is v_dim, padded to whole panels.
    """

    queries: Any  # [rows * k_dim]: the item's query rows, scaled
    ends: Any  # int64 [rows]: how many positions each of them sees
    places: Any  # int64 [rows]: index of its result in the output, or among the contributions
    slots: Any  # int32 [LANES]: slots of a tile's last positions, padded by repeating the last
    order: Any  # int32: 0, 1, 2, ...: the table of `Rows` that lie one behind the other
    keys: Any  # [k_dim * TILE]: the tile's K, transposed
    values: Any  # [TILE * width]: the tile's V, where v_dim is not whole panels
    scores: Any  # [ROWS * TILE]: of one block
    old: Any  # [ROWS]: of one block, the factors of the sums so far
    new: Any  # [ROWS]: of one block, the factors of the tile's contributions
    sums: Sums  # per row of the item: the tiles of the present group so far
    total: Sums  # per row of the item: the groups before
    # [2 * heads]: for a row whose contributions are combined: per head, all groups before; then
    # per head, the present group
    finished: Sums


_PARTS = 19  # arrays of a `Scratch`: 10, and 3 of each of its 3 `Sums`


class ScratchMemory:
    """Scratch memory for some threads, for items of at most `most` query rows. It must live until
    the kernel has run.
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
        sizes = -(-counts * 8 // LINE_BYTES) * LINE_BYTES  # bytes; as if all were int64
        self._memory = np.empty(threads * int(sizes.sum()) + LINE_BYTES, np.uint8)
        begin = -(-self._memory.ctypes.data // LINE_BYTES) * LINE_BYTES
        self.block: npt.NDArray[np.int64] = np.empty((threads, _PARTS, 2), np.int64)
        self.block[:, :, 0] = begin + (
            np.arange(threads)[:, None] * sizes.sum() + np.cumsum(sizes) - sizes
        )
        self.block[:, :, 1] = counts


@compiled
def _sums(block: Any, index: int) -> Sums:
    """The `Sums` whose arrays begin at number `index` of a thread's part."""
    return Sums(floats_in(block, index), floats_in(block, index + 1), floats_in(block, index + 2))


@compiled
def scratch_of(blocks: Any, thread: int) -> Scratch:
    """The part of thread number `thread`; `blocks` is `ScratchMemory.block`, flat."""
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

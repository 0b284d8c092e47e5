"""The scratch memory of the attention kernel, a part for each thread. The kernel's caller allocates
it.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any

from radixserve.kernels.cpu.attention.work import TILE
from radixserve.kernels.cpu.block import Block, Float32s, Int32s, Int64s
from radixserve.kernels.cpu.compile import compiled
from radixserve.kernels.cpu.vector import LANES

ROWS = 6
"""Query rows of a block of rows: as many as `multiply_rows` keeps in registers."""


class Sums(Block):
    """Per row: the weighted sum of V, and the largest score and the sum of weights that it is
    relative to.
    """

    values: Float32s  # [rows * width]
    peaks: Float32s  # [rows]: largest scores
    weights: Float32s  # [rows]: sums of exp(score - peak)


class Scratch(Block):
    """One thread's memory. A "row" is a query row at one head; "group" is a group of tiles. `width`
    is v_dim, padded to whole panels.
    """

    queries: Float32s  # [rows * k_dim]: the item's query rows, scaled
    begins: Int64s  # [rows]: the first position that each of them sees
    ends: Int64s  # [rows]: the position behind the last one that it sees
    places: Int64s  # [rows]: index of its result in the output, or among the contributions
    slots: Int32s  # [LANES]: slots of a tile's last positions, padded by repeating the last
    order: Int32s  # 0, 1, 2, ...: the table of `Rows` that lie one behind the other
    keys: Float32s  # [k_dim * TILE]: the tile's K, transposed
    values: Float32s  # [TILE * width]: the tile's V, where it cannot be used as it lies
    scores: Float32s  # [ROWS * TILE]: of one block of rows
    # Of one block of rows, [LANES] each, of which ROWS are used:
    peaks: Float32s  # the largest scores of the tile
    weights: Float32s  # the sums of weights of the tile
    old: Float32s  # the factors of the sums so far
    new: Float32s  # the factors of the tile's contributions
    sums: Sums  # per row of the item: the tiles of the present group so far
    total: Sums  # per row of the item: the groups before
    # [2 * heads]: for a row whose contributions are combined: per head, all groups before; then
    # per head, the present group
    finished: Sums


def scratch_lengths(most: int, heads: int, k_dim: int, width: int) -> dict[str, int]:
    """The lengths of the arrays of a `Scratch` for items of at most `most` rows."""
    lengths = {
        "queries": most * k_dim,
        "begins": most,
        "ends": most,
        "places": most,
        "slots": LANES,
        "order": max(TILE, k_dim),
        "keys": k_dim * TILE,
        "values": TILE * width,
        "scores": ROWS * TILE,
        "peaks": LANES,
        "weights": LANES,
        "old": LANES,
        "new": LANES,
    }
    return lengths | sums_lengths(most, heads, width)


def sums_lengths(most: int, heads: int, width: int) -> dict[str, int]:
    """The lengths of `sums`, `total` and `finished` of a scratch memory, as in `scratch_lengths`.
    `softmax.add_scores` reads and writes LANES entries of `sums` from any row on, and AMX
    multiplies as many rows where there are fewer.
    """
    lengths: dict[str, int] = {}
    for name, rows in (("sums", most + LANES), ("total", most), ("finished", 2 * heads)):
        lengths |= {f"{name}.values": rows * width, f"{name}.peaks": rows, f"{name}.weights": rows}
    return lengths


@compiled
def scratch_of(addresses: Any, thread: int) -> Scratch:
    """The part of thread number `thread`; `addresses` has one for each thread."""
    scratch = Scratch.read(addresses[thread])
    for i in range(scratch.order.shape[0]):
        scratch.order[i] = i
    return scratch

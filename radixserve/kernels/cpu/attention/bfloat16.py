"""Attention in bfloat16 on the CPU: what the kernels `amx` and `pairs` share. They have the walk of
`kernel` over items and tiles of the context, but load and add a tile in their own way. They differ
in the instructions that multiply.

These instructions multiply two neighbouring terms of a sum at a time. So the right-hand factors, K
and V, are kept as words of two bfloat16:

    scores [rows, 64] = queries [rows, k_dim] @ keys       keys [k_dim / 2, 64]: two dimensions of a
                                                           position in a word
    sums of V [rows, v_dim] = shares [rows, 64] @ values   values [32, v_dim]: two positions in a
                                                           word

Scores, the softmax and all sums are float32. The weights of a tile's positions, relative to its
largest score, are rounded to bfloat16. These rounded weights are called shares, and the sum of
weights is their sum. A query row's numbers do not depend on the rows that are multiplied with it.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from radixserve.kernels.cpu.attention.block import AttentionBlock, StepBlock
from radixserve.kernels.cpu.attention.kernel import Means, rows_alike, rows_that_see
from radixserve.kernels.cpu.attention.loads import (
    Run,
    first_seen,
    load_keys,
    rows_at,
    without_rows,
)
from radixserve.kernels.cpu.attention.memory import Sums, sums_lengths
from radixserve.kernels.cpu.attention.scores import PLAIN, SPECIAL
from radixserve.kernels.cpu.attention.softmax import add_scores, tile_shares
from radixserve.kernels.cpu.attention.transpose import transpose
from radixserve.kernels.cpu.attention.work import TILE
from radixserve.kernels.cpu.block import BFloat16s, Block, Float32s, Int32s, Int64s, UInt32s
from radixserve.kernels.cpu.compile import LINE_BYTES, compiled
from radixserve.kernels.cpu.products import Rows
from radixserve.kernels.cpu.vector import LANES, copy, prefetch

MULTIPLE = 32
"""`k_dim` and `v_dim` must be multiples of it."""

MOST_ROWS = 16
"""Query rows that are multiplied at a time, at most."""


class TileScratch(Block):
    """One thread's memory. A "row" is a query row at one head. AMX multiplies 16 rows at a time
    also where there are fewer, so there is room for 16 rows more than there are.
    """

    queries: BFloat16s  # [(rows + 16) * k_dim]: the item's query rows
    begins: Int64s  # [rows]: the first position that each of them sees
    ends: Int64s  # [rows]: the position behind the last one that it sees
    places: Int64s  # [rows]: index of its result in the output, or among the contributions
    slots: Int32s  # [LANES]: slots of a tile's last positions, padded by repeating the last
    keys: UInt32s  # [k_dim / 2 * TILE]
    values: UInt32s  # [TILE / 2 * v_dim]
    scores: Float32s  # [16 * TILE], not scaled
    shares: BFloat16s  # [16 * TILE]
    products: Float32s  # [16 * v_dim]: the sums of V of one tile
    peaks: Float32s  # [16]: the rows' largest scores of the tile
    weights: Float32s  # [16]: the rows' sums of shares of the tile
    old: Float32s  # [16]: the factors of the sums so far
    new: Float32s  # [16]: the factors of the tile's products
    sums: Sums  # per row of the item: the tiles of the present group so far
    total: Sums  # per row of the item: the groups before
    finished: Sums  # as in `memory.Scratch`


def tile_scratch_lengths(most: int, heads: int, k_dim: int, v_dim: int) -> dict[str, int]:
    """The lengths of the arrays of a `TileScratch` for items of at most `most` rows."""
    lengths = {
        "queries": (most + MOST_ROWS) * k_dim,
        "begins": most,
        "ends": most,
        "places": most,
        "slots": LANES,
        "keys": k_dim // 2 * TILE,
        "values": TILE // 2 * v_dim,
        "scores": MOST_ROWS * TILE,
        "shares": MOST_ROWS * TILE,
        "products": MOST_ROWS * v_dim,
        "peaks": MOST_ROWS,
        "weights": MOST_ROWS,
        "old": MOST_ROWS,
        "new": MOST_ROWS,
    }
    return lengths | sums_lengths(most, heads, v_dim)


class Later(NamedTuple):
    """What to prefetch while a tile is used: K and V of the next tile, in the pool."""

    keys: Rows
    values: Rows


@compiled
def _scratch_of(addresses: Any, thread: int) -> TileScratch:
    """The part of thread number `thread`."""
    return TileScratch.read(addresses[thread])


@compiled
def _load_queries(
    layer: AttentionBlock, step: StepBlock, kv: int, first: int, num_rows: int, scratch: TileScratch
) -> None:
    """As `loads.load_queries`, but queries are neither widened nor scaled."""
    dim, group = step.k_dim, step.heads // step.kv_heads
    for i in range(num_rows):
        row, place = step.rows[first + i], step.places[first + i]
        source = (row * step.heads + kv * group) * dim
        copy(layer.q, source, scratch.queries, i * group * dim, group * dim)
        for h in range(group):
            scratch.begins[i * group + h] = first_seen(layer, step.positions[row])
            scratch.ends[i * group + h] = step.positions[row] + 1
            scratch.places[i * group + h] = place * step.heads + kv * group + h


@compiled
def _load_lanes(k: Any, step: StepBlock, kv: int, slots: Any, at: int, target: Any, j: int) -> None:
    """target[d, j + lane] = dimensions 2 * d and 2 * d + 1 of K of slots[at + lane]."""
    dim = step.k_dim
    for d in range(0, dim, 2 * LANES):
        to = d // 2 * TILE + j
        transpose(k, kv * dim + d, step.kv_heads * dim, slots, at, target, to, TILE)


@compiled
def _load_values(v: Any, step: StepBlock, run: Run, target: Any) -> None:
    """target[j, d] = V of positions 2 * j and 2 * j + 1, 0 for positions behind the run."""
    dim, stride = step.v_dim, step.kv_heads * step.v_dim
    begin, whole = run.kv * dim, run.count // 2
    for j in range(whole):
        low = v[step.table[run.at + 2 * j] * stride + begin :][:dim]
        high = v[step.table[run.at + 2 * j + 1] * stride + begin :][:dim]
        row = target[j * dim :][:dim]
        for d in range(dim):
            row[d] = np.uint32(low[d]) | np.uint32(high[d]) << np.uint32(16)
    target[whole * dim :] = np.uint32(0)
    if run.count % 2:
        low = v[step.table[run.at + 2 * whole] * stride + begin :][:dim]
        for d in range(dim):
            target[whole * dim + d] = np.uint32(low[d])


@compiled
def _load_tile(
    layer: AttentionBlock, step: StepBlock, run: Run, later: Run, scratch: TileScratch
) -> Later:
    """Load the tile of `run`. Returns what to prefetch while that tile is used: the run `later`."""
    load_keys(_load_lanes, layer.k, step, run.kv, run.at, run.count, scratch)
    _load_values(layer.v, step, run, scratch.values)
    keys = rows_at(layer.k, step.k_dim, step, later)
    return Later(keys, rows_at(layer.v, step.v_dim, step, later))


@compiled
def _prefetch(rows: Rows, first: int, end: int) -> None:
    """Prefetch rows [first, end), as far as there are any."""
    for j in range(first, min(end, rows.count)):
        place = rows.table[rows.first + j] * rows.stride + rows.begin
        for d in range(0, rows.width, LINE_BYTES // rows.data.itemsize):
            prefetch(rows.data, place + d)


def means_of(multiply_queries: Any, add_values: Any, special: bool) -> Means:
    """The `Means` of a kernel for plain layers, or for `special` ones. It multiplies with these two
    compiled functions:

    `multiply_queries(scratch, first, count)` writes to scratch.scores the products, not scaled, of
    the queries of rows [first, first + count) with the keys.
    `add_values(scratch, first, count, fresh)` adds shares @ values to the sums of V of these rows,
    with the factors in `scratch`. If `fresh`, the tile is the first one of the sums, so they are
    written instead. Then it may also overwrite the sums of the rows that follow, up to 16 in all:
    their own are written later.
    """

    rules = SPECIAL if special else PLAIN

    @compiled
    def contribute(
        layer: AttentionBlock,
        scratch: TileScratch,
        first: int,
        count: int,
        start: int,
        later: Later,
        fresh: bool,
    ) -> None:
        """Add the loaded tile, which begins at position `start`, to the group's sums of rows
        [first, first + count) of the item, at most MOST_ROWS.
        """
        multiply_queries(scratch, first, count)
        share = -(-TILE // count)  # positions of the next tile to prefetch with each row
        for r in range(count):
            row, at = first + r, r * TILE
            begin, end = rules.begin(scratch, row, start), scratch.ends[row] - start
            scaling = rules.change(layer, scratch, row, at, start, layer.scaling)
            scratch.peaks[r], scratch.weights[r] = tile_shares(
                scratch.scores, at, begin, end, scaling, scratch.shares, at
            )
            _prefetch(later.keys, r * share, (r + 1) * share)
            _prefetch(later.values, r * share, (r + 1) * share)
        add_scores(scratch.sums, first, count, scratch, fresh)
        add_values(scratch, first, count, fresh)

    @compiled
    def add_tile(
        layer: AttentionBlock,
        scratch: TileScratch,
        most: int,
        start: int,
        later: Later,
        fresh: bool,
    ) -> None:
        """Add the loaded tile, which begins at position `start`, to those of the item's `most`
        query rows that see it.
        """
        for block in range(0, most, MOST_ROWS):
            first, end = rows_that_see(rules, scratch, block, min(block + MOST_ROWS, most), start)
            while first < end:
                cut, new = rows_alike(rules, scratch, first, end, start, fresh)
                contribute(layer, scratch, first, cut - first, start, later, new)
                later = Later(without_rows(later.keys), without_rows(later.values))
                first = cut

    return Means(_scratch_of, _load_queries, _load_tile, add_tile)

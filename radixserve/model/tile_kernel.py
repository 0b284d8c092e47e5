"""The CPU attention kernel: float32, exact, grouped-query aware, K/V read by slot. Compiled by numba when asked for.

The context is cut into tiles of 64 positions at absolute multiples of 64. For one query row, a tile's contribution
(largest score, sum of weights, weighted sum of V) depends on that row and that tile alone, and contributions are
combined in the order of the tiles. So no chunking, batch-mate, slot, thread or sharing of loaded tiles can change a
bit; `tiles` decides only who computes what together. Softmax in parts: Milakov & Gimelshein 2018 (arXiv:1805.02867).
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from radixserve.model.lanes import (
    LANES,
    PANEL,
    add_atomically,
    copy,
    exp,
    fma,
    multiply_1,
    multiply_2,
    multiply_3,
    multiply_4,
    multiply_6,
    prefetch,
    tile_exp,
    tile_max,
    tile_sum,
    transpose,
)
from radixserve.model.step_block import Step, Sums, compiled, read_step
from radixserve.model.tiles import TILE

_MINUS_INFINITY = np.float32(-np.inf)
_ZERO = np.float32(0)
_ROWS = 6  # query rows per block: what `multiply_6` keeps in registers


class Scratch(NamedTuple):
    """One thread's memory."""

    queries: Any  # the item's query rows, scaled
    ends: Any  # how many positions each of them sees
    places: Any  # where its result goes: in the output, or among the contributions
    keys: Any  # the tile's K, transposed
    values: Any  # the tile's V, rows padded to whole panels
    scores: Any  # of one block
    part: Sums  # of one block: the tile's contribution
    total: Sums  # of the item's rows: all tiles so far


@compiled
def _multiply(rows: int, a: Any, at: int, depth: int, b: Any, columns: int, c: Any) -> None:
    """c[0:rows] = a[0:rows, 0:depth] @ b[0:depth, 0:columns], rows <= 6; all contiguous, a from element `at` on."""
    for column in range(0, columns, PANEL):
        if rows == 6:
            multiply_6(a, at, depth, b, column, columns, c, column, columns, depth)
        elif rows >= 4:
            multiply_4(a, at, depth, b, column, columns, c, column, columns, depth)
            if rows == 5:
                rest, to = at + 4 * depth, column + 4 * columns
                multiply_1(a, rest, depth, b, column, columns, c, to, columns, depth)
        elif rows == 3:
            multiply_3(a, at, depth, b, column, columns, c, column, columns, depth)
        elif rows == 2:
            multiply_2(a, at, depth, b, column, columns, c, column, columns, depth)
        else:
            multiply_1(a, at, depth, b, column, columns, c, column, columns, depth)


@compiled
def _load_keys(step: Step, kv: int, at: int, n: int, target: Any) -> None:
    """target[d, j] = K of position j of the tile whose slots begin at table[at]; 0 from position n on."""
    dim = step.k_dim
    stride = step.kv_heads * dim
    for j in range(0, TILE, LANES):
        if j + LANES <= n and dim % LANES == 0:
            for d in range(0, dim, LANES):
                transpose(step.k, kv * dim + d, stride, step.table, at + j, target, d * TILE + j, TILE)
            continue
        for lane in range(j, j + LANES):
            source = step.table[at + lane] * stride + kv * dim if lane < n else 0
            for d in range(dim):
                target[d * TILE + lane] = step.k[source + d] if lane < n else _ZERO


@compiled
def _load_values(step: Step, kv: int, at: int, n: int, target: Any) -> None:
    """target[j, d] = V of position j; 0 from position n on. The padding of a row stays as it is."""
    dim = step.v_dim
    width = target.shape[0] // TILE
    for j in range(n):
        copy(step.v, (step.table[at + j] * step.kv_heads + kv) * dim, target, j * width, dim)
    target[n * width :] = _ZERO


@compiled
def _prefetch(step: Step, kv: int, at: int, stop: int) -> None:
    """Ask for K and V of the slots table[at:stop]; scattered slots are nothing the processor could foresee."""
    for j in range(at, stop):
        head = step.table[j] * step.kv_heads + kv
        prefetch(step.k, head * step.k_dim, step.k_dim)
        prefetch(step.v, head * step.v_dim, step.v_dim)


@compiled
def _load_queries(step: Step, kv: int, rows: Any, scratch: Scratch) -> None:
    """The query rows of one key head, scaled: index row * group + head of the group."""
    dim, group, scaling = step.k_dim, step.heads // step.kv_heads, step.scaling[0]
    for i in range(rows.shape[0] * group):
        row, head = rows[i // group], kv * group + i % group
        split = step.partial_begin[row]
        scratch.ends[i] = step.positions[row] + 1
        scratch.places[i] = (row if split < 0 else split) * step.heads + head
        source = step.q[(row * step.heads + head) * dim :][:dim]
        target = scratch.queries[i * dim :][:dim]
        for d in range(dim):
            target[d] = source[d] * scaling


@compiled
def _softmax_row(scores: Any, at: int, seen: int) -> Any:
    """Turn 64 scores into weights relative to the largest of the first `seen`; that score and the sum of weights."""
    for j in range(at + seen, at + TILE):
        scores[j] = _MINUS_INFINITY
    peak = tile_max(scores, at)
    tile_exp(scores, at, peak)
    for j in range(at + seen, at + TILE):
        scores[j] = _ZERO
    return peak, tile_sum(scores, at)


@compiled
def _contribute(k_dim: int, scratch: Scratch, block: int, count: int, start: int) -> None:
    """The loaded tile's contribution to query rows [block, block + count) of an item, into scratch.part."""
    scores, ends, part = scratch.scores, scratch.ends, scratch.part
    _multiply(count, scratch.queries, block * k_dim, k_dim, scratch.keys, TILE, scores)
    for r in range(count):
        seen = max(0, min(TILE, ends[block + r] - start))
        part.peaks[r], part.weights[r] = _softmax_row(scores, r * TILE, seen)
    width = scratch.values.shape[0] // TILE
    _multiply(count, scores, 0, TILE, scratch.values, width, part.values)


@compiled
def _combine(total: Sums, index: int, part: Sums, place: int, width: int) -> None:
    """Add contribution `place` of `part` to row `index` of `total`; rows are `width` apart."""
    peak, before = part.peaks[place], total.peaks[index]
    largest = peak if peak > before else before
    old, new = exp(before - largest), exp(peak - largest)
    into, values = total.values[index * width :][:width], part.values[place * width :][:width]
    for d in range(width):
        into[d] = fma(values[d], new, into[d] * old)
    total.weights[index] = fma(part.weights[place], new, total.weights[index] * old)
    total.peaks[index] = largest


@compiled
def _clear(sums: Sums, count: int, width: int) -> None:
    sums.values[: count * width] = _ZERO
    sums.peaks[:count] = _MINUS_INFINITY
    sums.weights[:count] = _ZERO


@compiled
def _store(scratch: Scratch, partials: Sums, block: int, count: int, where: Any) -> None:
    """Keep scratch.part for later: these rows' tiles are spread over items. where = (start of the tile, offset)."""
    start, offset = where
    part, width = scratch.part, scratch.values.shape[0] // TILE
    for r in range(count):
        if scratch.ends[block + r] > start:
            place = scratch.places[block + r] + offset
            copy(part.values, r * width, partials.values, place * width, width)
            partials.peaks[place], partials.weights[place] = part.peaks[r], part.weights[r]


@compiled
def _write(step: Step, place: int, total: Sums, index: int, width: int) -> None:
    """One finished row and head: the weighted mean of V."""
    out, values = step.out[place * step.v_dim :][: step.v_dim], total.values[index * width :][:width]
    weight = total.weights[index]
    for d in range(step.v_dim):
        out[d] = values[d] / weight


@compiled
def _attend_item(step: Step, scratch: Scratch, item: Any, kv: int) -> bool:
    """All tiles of one item; true if its rows are finished, false if their contributions were stored."""
    first, num_rows, begin, tile, end_tile, stop = item
    rows = step.rows[first : first + num_rows]
    most, width = num_rows * (step.heads // step.kv_heads), scratch.values.shape[0] // TILE
    inline: bool = step.partial_begin[rows[0]] < 0
    _load_queries(step, kv, rows, scratch)
    _clear(scratch.total, most, width)
    for start in range(tile * TILE, end_tile * TILE, TILE):
        n = min(TILE, stop - start)
        _load_keys(step, kv, begin + start, n, scratch.keys)
        _load_values(step, kv, begin + start, n, scratch.values)
        _prefetch(step, kv, begin + start + n, begin + min(stop, end_tile * TILE, start + n + TILE))
        for block in range(0, most, _ROWS):
            count = min(_ROWS, most - block)
            if scratch.ends[block + count - 1] <= start:  # rows of a chunk ascend: none of the block sees the tile
                continue
            _contribute(step.k_dim, scratch, block, count, start)
            if not inline:
                _store(scratch, step.partials, block, count, (start, start // TILE * step.heads))
                continue
            for r in range(count):
                if scratch.ends[block + r] > start:
                    _combine(scratch.total, block + r, scratch.part, r, width)
    if inline:
        for i in range(most):
            _write(step, scratch.places[i], scratch.total, i, width)
    return inline


@compiled
def _new_sums(count: int, width: int) -> Sums:
    return Sums(np.empty(count * width, np.float32), np.empty(count, np.float32), np.empty(count, np.float32))


@compiled
def _finish(step: Step, kv: int, total: Sums) -> None:
    """Combine the stored contributions to one key head's rows, in the order of the tiles."""
    group, width = step.heads // step.kv_heads, total.values.shape[0]
    for row in step.split_rows:
        for head in range(kv * group, kv * group + group):
            _clear(total, 1, width)
            for tile in range(step.positions[row] // TILE + 1):
                _combine(total, 0, step.partials, (step.partial_begin[row] + tile) * step.heads + head, width)
            _write(step, row * step.heads + head, total, 0, width)


@compiled
def _work(step: Step) -> None:
    """One thread: take items until none is left. Who stores a key head's last contributions combines them."""
    width = -(-step.v_dim // PANEL) * PANEL
    most = step.max_rows * (step.heads // step.kv_heads)
    scratch = Scratch(
        np.empty(most * step.k_dim, np.float32),
        np.empty(most, np.int64),
        np.empty(most, np.int64),
        np.empty(step.k_dim * TILE, np.float32),
        np.zeros(TILE * width, np.float32),
        np.empty(_ROWS * TILE, np.float32),
        _new_sums(_ROWS, width),
        _new_sums(most, width),
    )
    num_items = step.items.shape[0] // 6
    while True:
        taken = add_atomically(step.counters, 0, 1)
        if taken >= num_items * step.kv_heads:
            return
        at, kv = 6 * (taken // step.kv_heads), taken % step.kv_heads
        c = step.items[at : at + 6]
        finished = _attend_item(step, scratch, (c[0], c[1], c[2], c[3], c[4], c[5]), kv)
        if not finished and add_atomically(step.counters, 1 + kv, -1) == 1:
            _finish(step, kv, _new_sums(1, width))


def work(address: Any) -> None:
    """What every thread calls with the address of a step's block; compiled by `native`."""
    _work(read_step(address))

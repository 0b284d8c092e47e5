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
    LINE,
    PANEL,
    add_atomically,
    copy,
    exp,
    fma,
    tile_exp,
    tile_max,
    tile_sum,
)
from radixserve.model.products import Rows, multiply_1, multiply_2, multiply_3, multiply_4, multiply_6
from radixserve.model.step_block import Step, Sums, compiled, read_step
from radixserve.model.tile_loads import Run, Scratch, Tile, load_queries, load_tile, part_of, settled, without_rows
from radixserve.model.tiles import TILE

_MINUS_INFINITY = np.float32(-np.inf)
_ZERO, _ONE = np.float32(0), np.float32(1)
_ROWS = 6  # query rows per block: what `multiply_6` keeps in registers
_TAKEN, _DONE, _FINISHED = 0, 1, 2  # counters of a layer: items taken, items done, rows taken to be finished


class Item(NamedTuple):
    """What one thread takes at a time: the tiles [tile, end_tile) for some rows, at one key head; see `tiles`."""

    kv: Any
    first: Any
    num_rows: Any
    begin: Any
    tile: Any
    end_tile: Any
    stop: Any


@compiled
def _multiply(rows: int, a: Any, at: int, lda: int, b: Rows, columns: int, c: Any, later: Rows) -> None:
    """c[0:rows] = a[0:rows, 0:b.count] @ b[:, 0:columns], rows <= 6; c is contiguous, a from element `at` on."""
    share = -(-later.width * PANEL // (columns * LINE)) * LINE
    whole = later
    for column in range(0, columns, PANEL):
        later = part_of(whole, column // PANEL * share, share)
        if rows == 6:
            multiply_6(a, at, lda, b, column, c, column, columns, later)
        elif rows >= 4:
            multiply_4(a, at, lda, b, column, c, column, columns, later)
            if rows == 5:
                multiply_1(a, at + 4 * lda, lda, b, column, c, column + 4 * columns, columns, without_rows(later))
        elif rows == 3:
            multiply_3(a, at, lda, b, column, c, column, columns, later)
        elif rows == 2:
            multiply_2(a, at, lda, b, column, c, column, columns, later)
        else:
            multiply_1(a, at, lda, b, column, c, column, columns, later)


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
def _contribute(scratch: Scratch, block: int, count: int, start: int, tile: Tile) -> None:
    """The loaded tile's contribution to query rows [block, block + count) of an item, into scratch.part."""
    scores, ends, part, k_dim = scratch.scores, scratch.ends, scratch.part, tile.keys.count
    _multiply(count, scratch.queries, block * k_dim, k_dim, tile.keys, TILE, scores, tile.later_keys)
    for r in range(count):
        seen = max(0, min(TILE, ends[block + r] - start))
        part.peaks[r], part.weights[r] = _softmax_row(scores, r * TILE, seen)
    width = scratch.values.shape[0] // TILE
    _multiply(count, scores, 0, TILE, tile.values, width, part.values, tile.later_values)


@compiled
def _combine(total: Sums, index: int, part: Sums, place: int, width: int) -> None:
    """Add contribution `place` of `part` to row `index` of `total`; rows are `width` apart."""
    peak, before = part.peaks[place], total.peaks[index]
    grows = peak > before
    less = exp(before - peak if grows else peak - before)  # the other side's factor is e**0
    old, new = (less, _ONE) if grows else (_ONE, less)
    into, values = total.values[index * width :][:width], part.values[place * width :][:width]
    for d in range(width):
        into[d] = fma(values[d], new, into[d] * old)
    total.weights[index] = fma(part.weights[place], new, total.weights[index] * old)
    if grows:
        total.peaks[index] = peak


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
def _item(step: Step, number: int) -> Item:
    """Item and key head number `number`; one without tiles behind the last."""
    at = 6 * (number // step.kv_heads)
    if at >= step.items.shape[0]:
        return Item(0, 0, 0, 0, 0, 0, 0)
    c = step.items[at : at + 6]
    return Item(number % step.kv_heads, c[0], c[1], c[2], c[3], c[4], c[5])


@compiled
def _run(item: Item, tile: int) -> Run:
    return Run(item.kv, item.begin + tile * TILE, max(0, min(TILE, item.stop - tile * TILE)))


@compiled
def _attend_item(step: Step, scratch: Scratch, item: Item, following: Item) -> None:
    """All tiles of one item: its rows are finished then, or their contributions stored. `following` comes after it."""
    rows = step.rows[item.first : item.first + item.num_rows]
    most, width = item.num_rows * (step.heads // step.kv_heads), scratch.values.shape[0] // TILE
    inline = step.partial_begin[rows[0]] < 0
    load_queries(step, item.kv, rows, scratch)
    _clear(scratch.total, most, width)
    for tile in range(item.tile, item.end_tile):
        start, more = tile * TILE, tile + 1 < item.end_tile
        later = _run(item, tile + 1) if more else _run(following, following.tile)
        loaded = load_tile(step, _run(item, tile), later, scratch)
        for block in range(0, most, _ROWS):
            count = min(_ROWS, most - block)
            if scratch.ends[block + count - 1] <= start:  # rows of a chunk ascend: none of the block sees the tile
                continue
            _contribute(scratch, block, count, start, loaded)
            loaded = settled(loaded)
            if not inline:
                _store(scratch, step.partials, block, count, (start, start // TILE * step.heads))
                continue
            for r in range(count):
                if scratch.ends[block + r] > start:
                    _combine(scratch.total, block + r, scratch.part, r, width)
    if inline:
        for i in range(most):
            _write(step, scratch.places[i], scratch.total, i, width)


@compiled
def _floats(count: int) -> Any:
    """Room for floats that begins at a cache line: a vector that lies across two costs twice."""
    block = np.empty(count + LINE, np.float32)
    first = -(block.ctypes.data // 4) % LINE
    return block[first : first + count]


@compiled
def _new_sums(count: int, width: int) -> Sums:
    return Sums(_floats(count * width), _floats(count), _floats(count))


@compiled
def _finish_row(step: Step, row: int, total: Sums, width: int) -> None:
    """Combine the stored contributions to one row, in the order of the tiles; heads side by side."""
    _clear(total, step.heads, width)
    for tile in range(step.positions[row] // TILE + 1):
        place = (step.partial_begin[row] + tile) * step.heads
        for head in range(step.heads):
            _combine(total, head, step.partials, place + head, width)
    for head in range(step.heads):
        _write(step, row * step.heads + head, total, head, width)


@compiled
def _attend(step: Step, width: int) -> None:
    """Take items until none is left."""
    most = step.max_rows * (step.heads // step.kv_heads)
    scratch = Scratch(
        _floats(most * step.k_dim),
        np.empty(most, np.int64),
        np.empty(most, np.int64),
        np.empty(LANES, np.int32),
        np.arange(max(TILE, step.k_dim)).astype(np.int32),
        _floats(step.k_dim * TILE),
        _floats(TILE * width),
        _floats(_ROWS * TILE),
        _new_sums(_ROWS, width),
        _new_sums(most, width),
    )
    num_items = step.items.shape[0] // 6
    taken = add_atomically(step.counters, _TAKEN, 1)
    while taken < num_items * step.kv_heads:
        following = add_atomically(step.counters, _TAKEN, 1)
        _attend_item(step, scratch, _item(step, taken), _item(step, following))
        add_atomically(step.counters, _DONE, 1)
        taken = following
    while add_atomically(step.counters, _DONE, 0) < num_items * step.kv_heads:
        pass  # another thread is at the last, which is among the cheapest


@compiled
def _finish(step: Step, width: int) -> None:
    """Take rows whose contributions are stored until none is left."""
    total = _new_sums(step.heads, width)
    taken = add_atomically(step.counters, _FINISHED, 1)
    while taken < step.split_rows.shape[0]:
        _finish_row(step, step.split_rows[taken], total, width)
        taken = add_atomically(step.counters, _FINISHED, 1)


@compiled
def _work(step: Step) -> None:
    """One thread's part of a layer."""
    width = -(-step.v_dim // PANEL) * PANEL
    _attend(step, width)
    _finish(step, width)


def work(address: Any) -> None:
    """What every thread calls with the address of a step's block; compiled by `native`."""
    _work(read_step(address))

"""The CPU attention kernel: float32, exact, grouped-query aware, K/V read by slot.

The context is cut into tiles of 64 positions at absolute multiples of 64. For one query row, a tile's contribution
(largest score, sum of weights, weighted sum of V) depends on that row and that tile alone, and contributions are
combined in the order of the tiles. So no chunking, batch-mate, slot, thread or sharing of loaded tiles can change a
bit; `tiles` decides only who computes what together. Softmax in parts: Milakov & Gimelshein 2018 (arXiv:1805.02867).
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import torch

from radixserve.model.embedded import cache_dir
from radixserve.model.plan import AttentionPlan
from radixserve.model.tiles import TILE, TileWork

_SOURCES = ("attention_cpu.py", "lanes.py")


def _compiled_code_dir() -> Path:
    """Numba looks at one source file only to tell whether compiled code is stale; the kernel has two."""
    digest = hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in _SOURCES))
    return cache_dir() / "kernels" / digest.hexdigest()[:16]


numba.config.CACHE_DIR = str(_compiled_code_dir())
numba.config.THREADING_LAYER = os.environ.get("NUMBA_THREADING_LAYER", "omp")  # others fight torch's threads

from numba import njit, prange  # noqa: E402

from radixserve.model.lanes import (  # noqa: E402
    LANES,
    PANEL,
    copy,
    exp,
    fma,
    multiply_1,
    multiply_2,
    multiply_3,
    multiply_4,
    multiply_6,
    take_next,
    tile_exp,
    tile_max,
    tile_sum,
    transpose,
)

_MINUS_INFINITY = np.float32(-np.inf)
_ZERO = np.float32(0)
_ROWS = 6  # query rows per block: what `multiply_6` keeps in registers


class Step(NamedTuple):
    """What one layer of a step reads; arrays are flat where a block of `lanes` reads them."""

    q: Any  # [rows * heads * k_dim]
    k: Any  # [slots * kv_heads * k_dim]
    v: Any  # [slots * kv_heads * v_dim]
    table: Any
    positions: Any
    items: Any
    rows: Any
    partial_begin: Any
    heads: Any
    kv_heads: Any
    k_dim: Any
    v_dim: Any
    scaling: Any


class Sums(NamedTuple):
    """Weighted sums of V, with the largest score and the sum of weights they are relative to, per row."""

    values: Any  # flat
    peaks: Any
    weights: Any


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


@njit
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


@njit
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


@njit
def _load_values(step: Step, kv: int, at: int, n: int, target: Any) -> None:
    """target[j, d] = V of position j; 0 from position n on. The padding of a row stays as it is."""
    dim = step.v_dim
    width = target.shape[0] // TILE
    for j in range(n):
        copy(step.v, (step.table[at + j] * step.kv_heads + kv) * dim, target, j * width, dim)
    target[n * width :] = _ZERO


@njit
def _load_queries(step: Step, kv: int, rows: Any, scratch: Scratch) -> None:
    """The query rows of one key head, scaled: index row * group + head of the group."""
    dim, group = step.k_dim, step.heads // step.kv_heads
    for i in range(rows.shape[0] * group):
        row, head = rows[i // group], kv * group + i % group
        split = step.partial_begin[row]
        scratch.ends[i] = step.positions[row] + 1
        scratch.places[i] = (row if split < 0 else split) * step.heads + head
        source = step.q[(row * step.heads + head) * dim :][:dim]
        target = scratch.queries[i * dim :][:dim]
        for d in range(dim):
            target[d] = source[d] * step.scaling


@njit
def _softmax_row(scores: Any, at: int, seen: int) -> Any:
    """Turn 64 scores into weights relative to the largest of the first `seen`; that score and the sum of weights."""
    for j in range(at + seen, at + TILE):
        scores[j] = _MINUS_INFINITY
    peak = tile_max(scores, at)
    tile_exp(scores, at, peak)
    for j in range(at + seen, at + TILE):
        scores[j] = _ZERO
    return peak, tile_sum(scores, at)


@njit
def _contribute(k_dim: int, scratch: Scratch, block: int, count: int, start: int) -> None:
    """The loaded tile's contribution to query rows [block, block + count) of an item, into scratch.part."""
    scores, ends, part = scratch.scores, scratch.ends, scratch.part
    _multiply(count, scratch.queries, block * k_dim, k_dim, scratch.keys, TILE, scores)
    for r in range(count):
        seen = max(0, min(TILE, ends[block + r] - start))
        part.peaks[r], part.weights[r] = _softmax_row(scores, r * TILE, seen)
    width = scratch.values.shape[0] // TILE
    _multiply(count, scores, 0, TILE, scratch.values, width, part.values)


@njit
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


@njit
def _clear(sums: Sums, count: int, width: int) -> None:
    sums.values[: count * width] = _ZERO
    sums.peaks[:count] = _MINUS_INFINITY
    sums.weights[:count] = _ZERO


@njit
def _store(scratch: Scratch, partials: Sums, block: int, count: int, where: Any) -> None:
    """Keep scratch.part for later: these rows' tiles are spread over items. where = (start of the tile, offset)."""
    start, offset = where
    part, width = scratch.part, scratch.values.shape[0] // TILE
    for r in range(count):
        if scratch.ends[block + r] > start:
            place = scratch.places[block + r] + offset
            copy(part.values, r * width, partials.values, place * width, width)
            partials.peaks[place], partials.weights[place] = part.peaks[r], part.weights[r]


@njit
def _write(step: Step, out: Any, place: int, total: Sums, index: int, width: int) -> None:
    """One finished row and head: the weighted mean of V."""
    dim = step.v_dim
    for d in range(dim):
        out[place * dim + d] = total.values[index * width + d] / total.weights[index]


@njit
def _attend_item(step: Step, scratch: Scratch, partials: Sums, out: Any, item: Any, kv: int) -> None:
    first, num_rows, begin, tile, end_tile, stop = item
    rows = step.rows[first : first + num_rows]
    most, width = num_rows * (step.heads // step.kv_heads), scratch.values.shape[0] // TILE
    inline = step.partial_begin[rows[0]] < 0
    _load_queries(step, kv, rows, scratch)
    _clear(scratch.total, most, width)
    for start in range(tile * TILE, end_tile * TILE, TILE):
        n = min(TILE, stop - start)
        _load_keys(step, kv, begin + start, n, scratch.keys)
        _load_values(step, kv, begin + start, n, scratch.values)
        for block in range(0, most, _ROWS):
            count = min(_ROWS, most - block)
            if scratch.ends[block + count - 1] <= start:  # rows of a chunk ascend: none of the block sees the tile
                continue
            _contribute(step.k_dim, scratch, block, count, start)
            if not inline:
                _store(scratch, partials, block, count, (start, start // TILE * step.heads))
                continue
            for r in range(count):
                if scratch.ends[block + r] > start:
                    _combine(scratch.total, block + r, scratch.part, r, width)
    if inline:
        for i in range(most):
            _write(step, out, scratch.places[i], scratch.total, i, width)


@njit
def _new_sums(count: int, width: int) -> Sums:
    return Sums(np.empty(count * width, np.float32), np.empty(count, np.float32), np.empty(count, np.float32))


@njit
def _work(step: Step, partials: Sums, out: Any, counter: Any, max_rows: int) -> None:
    """One thread: take items until none is left."""
    width = -(-step.v_dim // PANEL) * PANEL
    most = max_rows * (step.heads // step.kv_heads)
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
    while True:
        taken = take_next(counter)
        if taken >= step.items.shape[0] * step.kv_heads:
            return
        columns = step.items[taken // step.kv_heads]
        item = (columns[0], columns[1], columns[2], columns[3], columns[4], columns[5])
        _attend_item(step, scratch, partials, out, item, taken % step.kv_heads)


@njit
def _finish_row(step: Step, partials: Sums, out: Any, row: int, total: Sums) -> None:
    """Combine the stored contributions of one row, all heads, in the order of the tiles."""
    heads = step.heads
    width = total.values.shape[0]
    for head in range(heads):
        _clear(total, 1, width)
        for tile in range(step.positions[row] // TILE + 1):
            _combine(total, 0, partials, (step.partial_begin[row] + tile) * heads + head, width)
        _write(step, out, row * heads + head, total, 0, width)


@njit(parallel=True, cache=True, error_model="numpy")
def _attend(step: Step, partials: Sums, out: Any, counter: Any, limits: Any, split_rows: Any) -> None:
    max_rows, threads = limits
    for _ in prange(threads):
        _work(step, partials, out, counter, max_rows)
    width = -(-step.v_dim // PANEL) * PANEL
    for i in prange(split_rows.shape[0]):
        _finish_row(step, partials, out, split_rows[i], _new_sums(1, width))


def attend_cpu(q: torch.Tensor, layer: int, plan: AttentionPlan, scaling: float) -> torch.Tensor:
    """Attention of one layer; see `attention` for the shapes. float32 on the CPU only."""
    k, v = plan.pool.k[layer], plan.pool.v[layer]
    num_rows, heads, k_dim = q.shape
    _, kv_heads, v_dim = v.shape
    if plan.work is None:
        plan.work = TileWork.of(plan.spans, plan.table, heads // kv_heads)
    work = plan.work
    step = Step(
        q.numpy().reshape(-1),
        k.numpy().reshape(-1),
        v.numpy().reshape(-1),
        plan.table,
        plan.positions,
        work.items,
        work.rows,
        work.partial_begin,
        heads,
        kv_heads,
        k_dim,
        v_dim,
        np.float32(scaling),
    )
    out = torch.empty(num_rows, heads, v_dim)
    partials = work.partials(heads, -(-v_dim // PANEL) * PANEL)
    _attend(
        step,
        Sums(*partials),
        out.numpy().reshape(-1),
        np.zeros(1, np.int64),
        (work.max_rows, numba.get_num_threads()),
        work.split_rows,
    )
    return out

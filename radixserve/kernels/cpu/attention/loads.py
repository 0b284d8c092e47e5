"""Reads the attention kernel's input into one thread's scratch memory: K and V of a tile by slot,
and the query rows of an item.

It moves numbers and computes nothing, except that queries are scaled. Other types become float32 on
the way, numbers of one byte times their scale, so that from there on all types are one. It is
compiled together with `kernel`.
"""

# mypy: disable-error-code="untyped-decorator,no-any-return"
# (numba has no type hints)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from radixserve.kernels.cpu.attention.block import AttentionBlock, StepBlock
from radixserve.kernels.cpu.attention.memory import Scratch
from radixserve.kernels.cpu.attention.transpose import transpose, transposed_dims
from radixserve.kernels.cpu.attention.work import TILE
from radixserve.kernels.cpu.compile import compiled, on_stack
from radixserve.kernels.cpu.one_byte import largest_code, scale_at
from radixserve.kernels.cpu.products import Fold, Rows
from radixserve.kernels.cpu.vector import (
    LANES,
    number_at,
    scale_lanes,
)

_ZERO, _ONE = np.float32(0), np.float32(1)
_scales = on_stack(types.float32, LANES)


class Run(NamedTuple):
    """Some positions of one sequence at one key head: those whose slots are table[at : at +
    count].
    """

    kv: Any  # key head
    at: Any
    count: Any


class Tile(NamedTuple):
    """One tile at one key head, loaded, and what to prefetch while it is multiplied."""

    keys: Rows  # transposed: a row for each dimension
    values: Rows  # a row for each position
    later_keys: Rows  # K of the next tile, in the pool: to be prefetched
    later_values: Rows  # V of the next tile


@compiled
def load_keys(
    load_lanes: Any, k: Any, step: StepBlock, kv: int, at: int, n: int, scratch: Any
) -> None:
    """scratch.keys[d, j] = K of position j of the tile whose slots begin at table[at], for j < n.
    Columns from n on hold other positions' numbers, which the softmax does not look at.
    `load_lanes` loads LANES positions.
    """
    whole = n - n % LANES  # positions in whole vectors; the rest is padded to one more
    for j in range(0, whole, LANES):
        load_lanes(k, step, kv, step.table, at + j, scratch.keys, j)
    if whole < n:
        for lane in range(LANES):
            scratch.slots[lane] = step.table[at + min(whole + lane, n - 1)]
        load_lanes(k, step, kv, scratch.slots, 0, scratch.keys, whole)


@compiled
def _load_lanes(k: Any, step: StepBlock, kv: int, slots: Any, at: int, target: Any, j: int) -> None:
    """target[d, j + lane] = K of slots[at + lane], for LANES lanes."""
    dim, begin, stride = step.k_dim, kv * step.k_row, step.kv_heads * step.k_row
    square = transposed_dims(k)
    whole = dim - dim % square
    for d in range(0, whole, square):
        transpose(k, begin + d, stride, slots, at, target, d * TILE + j, TILE)
    for d in range(whole, dim):
        for lane in range(LANES):
            place = slots[at + lane] * stride + begin + d
            target[d * TILE + j + lane] = number_at(k, place)
    if largest_code(k) > _ZERO:
        scales = _scales()
        for lane in range(LANES):
            scales[lane] = scale_at(k, slots[at + lane] * stride + begin + dim)
        for d in range(dim):
            scale_lanes(target, d * TILE + j, scales)


@compiled
def _load_values(v: Any, step: StepBlock, kv: int, at: int, n: int, target: Any) -> None:
    """target[j, d] = V of position j, for j < n. The padding behind v_dim keeps what it holds."""
    dim = step.v_dim
    for j in range(n):
        place = (step.table[at + j] * step.kv_heads + kv) * step.v_row
        scale = scale_at(v, place + dim) if largest_code(v) > _ZERO else _ONE
        for d in range(dim):
            target[j * step.width + d] = number_at(v, place + d) * scale


@compiled
def rows_at(data: Any, dim: int, step: StepBlock, run: Run) -> Rows:
    """K or V of a run, in the pool; `dim` is the elements of a head's row."""
    return Rows(data, step.table, run.at, run.count, run.kv * dim, step.kv_heads * dim, dim)


@compiled
def without_rows(rows: Rows) -> Rows:
    """The same place with no rows: nothing is prefetched."""
    return Rows(rows.data, rows.table, rows.first, 0, rows.begin, rows.stride, rows.width)


@compiled
def part_of(rows: Rows, first: int, width: int) -> Rows:
    """Columns [first, first + width) of each row, as far as there are any."""
    begin, width = rows.begin + first, max(0, min(width, rows.width - first))
    return Rows(rows.data, rows.table, rows.first, rows.count, begin, rows.stride, width)


@compiled
def _tile(
    layer: AttentionBlock, step: StepBlock, values: Rows, later: Run, scratch: Scratch
) -> Tile:
    """The tile whose K has been loaded and whose V lies at `values`."""
    keys = Rows(scratch.keys, scratch.order, 0, step.k_dim, 0, TILE, TILE)
    later_keys = rows_at(layer.k, step.k_row, step, later)
    return Tile(keys, values, later_keys, rows_at(layer.v, step.v_row, step, later))


@compiled
def _copied_values(layer: AttentionBlock, step: StepBlock, run: Run, scratch: Scratch) -> Rows:
    """V of a run, copied to the scratch memory."""
    _load_values(layer.v, step, run.kv, run.at, run.count, scratch.values)
    return Rows(scratch.values, scratch.order, 0, run.count, 0, step.width, step.width)


@compiled
def load_tile(
    layer: AttentionBlock, step: StepBlock, run: Run, later: Run, scratch: Scratch
) -> Tile:
    """Load the tile of `run` in float32, of which K is always copied (transposed), V only to pad
    its rows. `later` is the run to prefetch while the tile is used.
    """
    load_keys(_load_lanes, layer.k, step, run.kv, run.at, run.count, scratch)
    values = rows_at(layer.v, step.v_dim, step, run)
    if step.v_dim != step.width:
        values = _copied_values(layer, step, run, scratch)
    return _tile(layer, step, values, later, scratch)


@compiled
def load_tile_widened(
    layer: AttentionBlock, step: StepBlock, run: Run, later: Run, scratch: Scratch
) -> Tile:
    """`load_tile` for other types: K and V become float32 when they are copied."""
    load_keys(_load_lanes, layer.k, step, run.kv, run.at, run.count, scratch)
    values = _copied_values(layer, step, run, scratch)
    return _tile(layer, step, values, later, scratch)


@compiled
def settled(tile: Tile) -> Tile:
    """The same tile with nothing left to prefetch."""
    return Tile(
        tile.keys, tile.values, without_rows(tile.later_keys), without_rows(tile.later_values)
    )


@compiled
def folded_from(fold: Fold, first: int) -> Fold:
    """The same factors, from row `first` on."""
    return Fold(fold.old, fold.new, fold.first + first, fold.active)


@compiled
def first_seen(layer: AttentionBlock, position: Any) -> Any:
    """The first position that a row at `position` sees."""
    return max(0, np.int64(position) + 1 - layer.window)


@compiled
def load_queries(
    layer: AttentionBlock, step: StepBlock, kv: int, first: int, num_rows: int, scratch: Scratch
) -> None:
    """Load the query rows of an item at one key head, scaled, with the positions that each sees and
    where its result goes. Row i of the item at head h of the key head's group has index i * group +
    h.
    """
    dim, group = step.k_dim, step.heads // step.kv_heads
    for i in range(num_rows * group):
        row, place = step.rows[first + i // group], step.places[first + i // group]
        head = kv * group + i % group
        scratch.begins[i] = first_seen(layer, step.positions[row])
        scratch.ends[i] = step.positions[row] + 1
        scratch.places[i] = place * step.heads + head
        source = (row * step.heads + head) * dim
        for d in range(dim):
            scratch.queries[i * dim + d] = number_at(layer.q, source + d) * layer.scaling

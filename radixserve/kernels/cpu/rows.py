"""The parts of a decoder layer between its linears and its attention, row by row: norms, rotary
positions, gating.

One path of code computes a row, whatever the number of rows and threads: nothing is reassociated,
sums run in one fixed order. Activations are float32 or bfloat16, and K/V has a type of its own.
Arithmetic is float32, and each value is rounded once, when it is written. Rotary positions: Su et
al. 2021 (arXiv:2104.09864); RMSNorm: Zhang & Sennrich 2019 (arXiv:1910.07467).

Every thread of a kernel takes the next rows that no thread has taken, until there are none.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import types

from radixserve.kernels.cpu.block import Block, Float, Float32s, Int, Int64s, KVNumbers, Numbers
from radixserve.kernels.cpu.compile import compiled, on_stack
from radixserve.kernels.cpu.one_byte import largest_code, put_scale
from radixserve.kernels.cpu.vector import (
    add_atomically,
    fma,
    number_at,
    put_number,
    tile_exp,
    tile_sum,
)

_ZERO, _ONE, _NAN = np.float32(0), np.float32(1), np.float32(np.nan)
_INFINITY, _TINY = np.float32(np.inf), np.finfo(np.float32).tiny
_STRIPE = 64  # columns at a time: what `tile_exp` and `tile_sum` take
_GROUP = 16  # rows that a thread takes at a time
_MOST_DIM = 1024  # of a head
_stripe = on_stack(types.float32, _STRIPE)
_head = on_stack(types.float32, _MOST_DIM)


class NormBlock(Block):
    """hidden += delta; normed = hidden / sqrt(mean(hidden**2) + epsilon) * weight."""

    hidden: Numbers  # [rows * width], the residual stream
    delta: Numbers  # [rows * width], or empty
    weight: Float32s  # [width]
    normed: Numbers  # [rows * width]
    counter: Int64s  # [1]: groups of rows that threads have taken; zero at the start
    rows: Int
    epsilon: Float


class RotateBlock(Block):
    """Queries, keys and values of each row: the first two normed and rotated, the last two written
    to the row's slot.
    """

    qkv: Numbers  # [rows * (heads + 2 * kv_heads) * dim]
    cos: Float32s  # [rows * dim]
    sin: Float32s  # [rows * dim]
    q_weight: Float32s  # [dim], of the norm of a head; or empty
    k_weight: Float32s  # [dim], or empty
    q: Numbers  # [rows * heads * dim]
    k: KVNumbers  # [slots * kv_heads * row]
    v: KVNumbers  # [slots * kv_heads * row]
    slots: Int64s  # [rows]: where K and V go
    counter: Int64s
    rows: Int
    heads: Int
    kv_heads: Int
    dim: Int
    row: Int  # elements of a head's row in the pool: `dim`, and a scale where there is one
    epsilon: Float


class GateBlock(Block):
    """gated = silu(gate) * up."""

    gate_up: Numbers  # [rows * 2 * inner]: gate, then up
    gated: Numbers  # [rows * inner]
    counter: Int64s
    rows: Int


@compiled
def _next_rows(block: Any) -> Any:
    """Take the next rows that no thread has taken: their first and their end."""
    first = add_atomically(block.counter, 0, 1) * _GROUP
    return first, min(block.rows, first + _GROUP)


@compiled
def _scale(source: Any, at: int, width: int, epsilon: Any) -> Any:
    """1 / sqrt(mean(source**2) + epsilon) of `width` numbers from element `at` on."""
    sums = _stripe()
    sums[:] = _ZERO
    for column in range(0, width, _STRIPE):
        for j in range(min(_STRIPE, width - column)):
            x = number_at(source, at + column + j)
            sums[j] = fma(x, x, sums[j])
    return _ONE / np.sqrt(tile_sum(sums, 0) / np.float32(width) + epsilon)


@compiled
def _add_norm(block: Any) -> None:
    """Every thread: the whole kernel `add_norm`."""
    width = block.weight.shape[0]
    first, end = _next_rows(block)
    while first < end:
        for row in range(first, end):
            at = row * width
            for j in range(at, at + width if block.delta.shape[0] > 0 else at):
                total = number_at(block.hidden, j) + number_at(block.delta, j)
                put_number(block.hidden, j, total)
            scale = _scale(block.hidden, at, width, block.epsilon)
            for j in range(width):
                x = number_at(block.hidden, at + j) * scale * block.weight[j]
                put_number(block.normed, at + j, x)
        first, end = _next_rows(block)


@compiled
def _load_head(block: Any, at: int, weight: Any, head: Any) -> None:
    """head[0:dim] = the head that begins at element `at` of qkv, normed if there is a weight."""
    scale = _scale(block.qkv, at, block.dim, block.epsilon) if weight.shape[0] > 0 else _ONE
    for j in range(block.dim):
        head[j] = number_at(block.qkv, at + j)
    for j in range(weight.shape[0]):
        head[j] = head[j] * scale * weight[j]


@compiled
def _rotate_head(block: Any, row: int, head: Any) -> None:
    """Rotate the two halves of a head against each other, in place."""
    dim, half = block.dim, block.dim // 2
    cos, sin = block.cos[row * dim :][:dim], block.sin[row * dim :][:dim]
    for j in range(half):
        low, high = head[j], head[half + j]
        head[j] = low * cos[j] - high * sin[j]
        head[half + j] = high * cos[half + j] + low * sin[half + j]


@compiled
def _scale_of(head: Any, dim: int, largest: Any) -> Any:
    """The scale of a head's numbers of one byte, as in `tensors.one_byte`."""
    peak = _ZERO
    for j in range(dim):
        size = abs(head[j])
        if size > peak or np.isnan(size):
            peak = size
    scale = peak / largest
    if scale < _TINY:
        return _ZERO
    return scale if scale < _INFINITY else _NAN


@compiled
def _put_head(target: Any, to: int, head: Any, dim: int) -> None:
    """Write a head from element `to` of `target` on, with its scale where its type has one."""
    scale = _ONE
    if largest_code(target) > _ZERO:
        scale = _scale_of(head, dim, largest_code(target))
        put_scale(target, to + dim, scale)
    for j in range(dim):
        put_number(target, to + j, head[j] / scale if scale > _ZERO else _ZERO)


@compiled
def _rotate_row(block: Any, row: int, head: Any) -> None:
    heads, kv_heads, dim = block.heads, block.kv_heads, block.dim
    source, place = row * (heads + 2 * kv_heads) * dim, block.slots[row] * kv_heads * block.row
    for index in range(heads):
        _load_head(block, source + index * dim, block.q_weight, head)
        _rotate_head(block, row, head)
        _put_head(block.q, (row * heads + index) * dim, head, dim)
    for index in range(kv_heads):
        _load_head(block, source + (heads + index) * dim, block.k_weight, head)
        _rotate_head(block, row, head)
        _put_head(block.k, place + index * block.row, head, dim)
    values = source + (heads + kv_heads) * dim
    for index in range(kv_heads):
        for j in range(dim):
            head[j] = number_at(block.qkv, values + index * dim + j)
        _put_head(block.v, place + index * block.row, head, dim)


@compiled
def _rotate(block: Any) -> None:
    """Every thread: the whole kernel `rotate`."""
    head = _head()
    first, end = _next_rows(block)
    while first < end:
        for row in range(first, end):
            _rotate_row(block, row, head)
        first, end = _next_rows(block)


@compiled
def _gate_stripe(block: Any, at: int, inner: int, count: int, to: int, powers: Any) -> None:
    """gated[to : to + count] = silu(gate) * up, for at most 64 columns; gate begins at element `at`
    and up `inner` elements behind it. It takes e to powers <= 0 only, which cannot overflow.
    """
    powers[count:] = _ZERO
    for j in range(count):
        powers[j] = -abs(number_at(block.gate_up, at + j))
    tile_exp(powers, 0, _ZERO)
    for j in range(count):
        gate, up = number_at(block.gate_up, at + j), number_at(block.gate_up, at + inner + j)
        power = powers[j]
        x = up * (gate * (_ONE if gate >= _ZERO else power) / (_ONE + power))
        put_number(block.gated, to + j, x)


@compiled
def _gate(block: Any) -> None:
    """Every thread: the whole kernel `gate`."""
    inner, powers = block.gated.shape[0] // block.rows, _stripe()
    first, end = _next_rows(block)
    while first < end:
        for row in range(first, end):
            for column in range(0, inner, _STRIPE):
                at, to = 2 * row * inner + column, row * inner + column
                _gate_stripe(block, at, inner, min(_STRIPE, inner - column), to, powers)
        first, end = _next_rows(block)


def add_norm(address: Any) -> None:
    """The kernel of `NormBlock` in float32. Every thread calls it with the block's address.
    `native` compiles it, and those below.
    """
    _add_norm(NormBlock.read(address))


def add_norm_bfloat16(address: Any) -> None:
    """The kernel of `NormBlock` in bfloat16."""
    _add_norm(NormBlock.read_bfloat16(address))


@cache
def rotate_of(numbers: torch.dtype, kv: torch.dtype) -> Callable[[Any], None]:
    """The kernel of `RotateBlock` for activations and a pool of these dtypes."""
    read = RotateBlock.reader(numbers, kv)

    def rotate(address: Any) -> None:
        _rotate(read(address))

    rotate.__name__ = f"rotate_{numbers}_{kv}".replace("torch.", "")
    return rotate


def gate(address: Any) -> None:
    """The kernel of `GateBlock` in float32."""
    _gate(GateBlock.read(address))


def gate_bfloat16(address: Any) -> None:
    """The kernel of `GateBlock` in bfloat16."""
    _gate(GateBlock.read_bfloat16(address))

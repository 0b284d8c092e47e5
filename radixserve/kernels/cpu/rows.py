"""The parts of a decoder layer between its linears and its attention, row by row: norms and rotary
positions. The activations of its MLP are in `kernels.cpu.activation`.

One path of code computes a row, whatever the number of rows and threads: nothing is reassociated,
sums run in one fixed order. Activations are float32 or bfloat16, and K/V has a type of its own.
Arithmetic is float32, and each value is rounded once, when it is written. Rotary positions: Su et
al. 2021 (arXiv:2104.09864); RMSNorm: Zhang & Sennrich 2019 (arXiv:1910.07467); LayerNorm: Ba et al.
2016 (arXiv:1607.06450).

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
    tile_sum,
)

_ZERO, _ONE, _NAN = np.float32(0), np.float32(1), np.float32(np.nan)
_INFINITY, _TINY = np.float32(np.inf), np.finfo(np.float32).tiny
_STRIPE = 64  # columns at a time: what `tile_sum` takes
_GROUP = 16  # rows that a thread takes at a time
_MOST_DIM = 1024  # of a head
_stripe = on_stack(types.float32, _STRIPE)
_head = on_stack(types.float32, _MOST_DIM)


class NormBlock(Block):
    """hidden += delta * delta_scale; normed = (hidden - mean) / sqrt(mean((hidden - mean)**2) +
    epsilon) * weight + bias. The mean is that of the row where norms are centered (LayerNorm), else
    0 (RMSNorm).
    """

    hidden: Numbers  # [rows * width], the residual stream
    delta: Numbers  # [rows * width], or empty
    weight: Float32s  # [width], or empty: nothing is normed
    bias: Float32s  # [width], or empty
    normed: Numbers  # [rows * width]
    counter: Int64s  # [1]: groups of rows that threads have taken; zero at the start
    rows: Int
    width: Int
    is_centered: Int
    epsilon: Float
    delta_scale: Float


class RotateBlock(Block):
    """Queries, keys and values of each row: the first two normed and rotated, the last two written
    to the row's slot.
    """

    qkv: Numbers  # [rows * columns]
    places: Int64s  # [heads + 2 * kv_heads]: where the heads of q, k and v begin in a row of qkv
    cos: Float32s  # [rows * pairs], or empty: nothing is rotated
    sin: Float32s  # [rows * pairs]
    weight: Float32s  # [(heads + kv_heads) * dim], of the norms of q and k; or empty
    bias: Float32s  # [(heads + kv_heads) * dim], or empty
    q: Numbers  # [rows * heads * dim]
    k: KVNumbers  # [slots * kv_heads * row]
    v: KVNumbers  # [slots * kv_heads * row]
    slots: Int64s  # [rows]: where K and V go
    counter: Int64s
    rows: Int
    columns: Int
    heads: Int
    kv_heads: Int
    dim: Int
    row: Int  # elements of a head's row in the pool: `dim`, and a scale where there is one
    pairs: Int  # of numbers of a head that are rotated against each other
    in_neighbours: Int  # whether a pair is 2j and 2j + 1, else j and pairs + j
    is_whole: Int  # whether the heads of q, and of k, are normed together; they then lie in order
    is_late: Int  # whether heads are normed after they are rotated
    is_centered: Int
    epsilon: Float
    clip: Float  # the largest size of a number in qkv; 0: any


@compiled
def next_rows(block: Any) -> Any:
    """Take the next rows that no thread has taken: their first and their end."""
    first = add_atomically(block.counter, 0, 1) * _GROUP
    return first, min(block.rows, first + _GROUP)


@compiled
def _mean(source: Any, at: int, width: int) -> Any:
    """The mean of `width` numbers from element `at` on."""
    sums = _stripe()
    sums[:] = _ZERO
    for column in range(0, width, _STRIPE):
        for j in range(min(_STRIPE, width - column)):
            sums[j] += number_at(source, at + column + j)
    return tile_sum(sums, 0) / np.float32(width)


@compiled
def spread(source: Any, at: int, width: int, is_centered: int, epsilon: Any) -> Any:
    """The mean (0 unless centered) of `width` numbers from element `at` on, and
    1 / sqrt(mean((source - mean)**2) + epsilon).
    """
    mean = _mean(source, at, width) if is_centered != 0 else _ZERO
    sums = _stripe()
    sums[:] = _ZERO
    for column in range(0, width, _STRIPE):
        for j in range(min(_STRIPE, width - column)):
            x = number_at(source, at + column + j) - mean
            sums[j] = fma(x, x, sums[j])
    return mean, _ONE / np.sqrt(tile_sum(sums, 0) / np.float32(width) + epsilon)


@compiled
def _add(block: Any, at: int) -> None:
    """Add `delta` to a row of the stream, scaled if it is to be; a product is rounded, too."""
    if block.delta_scale != _ONE:
        for j in range(at, at + block.width):
            put_number(block.delta, j, number_at(block.delta, j) * block.delta_scale)
    for j in range(at, at + block.width):
        total = number_at(block.hidden, j) + number_at(block.delta, j)
        put_number(block.hidden, j, total)


@compiled
def _norm(block: Any, at: int) -> None:
    width, weight, bias = block.weight.shape[0], block.weight, block.bias
    mean, scale = spread(block.hidden, at, width, block.is_centered, block.epsilon)
    if bias.shape[0] > 0:
        for j in range(width):
            x = (number_at(block.hidden, at + j) - mean) * scale * weight[j] + bias[j]
            put_number(block.normed, at + j, x)
    else:
        for j in range(width):
            x = (number_at(block.hidden, at + j) - mean) * scale * weight[j]
            put_number(block.normed, at + j, x)


@compiled
def _add_norm(block: Any) -> None:
    """Every thread: the whole kernel `add_norm`."""
    first, end = next_rows(block)
    while first < end:
        for row in range(first, end):
            if block.delta.shape[0] > 0:
                _add(block, row * block.width)
            if block.weight.shape[0] > 0:
                _norm(block, row * block.width)
        first, end = next_rows(block)


@compiled
def _load_head(block: Any, at: int, head: Any) -> None:
    """head[0:dim] = the head that begins at element `at` of qkv."""
    for j in range(block.dim):
        head[j] = number_at(block.qkv, at + j)
    if block.clip > _ZERO:
        for j in range(block.dim):
            x = head[j]
            x = block.clip if x > block.clip else x
            head[j] = -block.clip if x < -block.clip else x


@compiled
def _norm_head(block: Any, at: int, whole: Any, head: Any) -> None:
    """Norm a head in place. Its weights begin at element `at`; `whole` is the spread of all heads
    together, where that counts.
    """
    mean, scale = whole
    if block.is_whole == 0:
        mean, scale = spread(head, 0, block.dim, block.is_centered, block.epsilon)
    weight, bias = block.weight[at:][: block.dim], block.bias[at:][: block.dim]
    for j in range(weight.shape[0]):
        head[j] = (head[j] - mean) * scale * weight[j]
    for j in range(bias.shape[0]):
        head[j] += bias[j]


@compiled
def rotate_head(block: Any, row: int, head: Any) -> None:
    """Rotate pairs of numbers of a head, in place."""
    pairs = block.pairs
    cos, sin = block.cos[row * pairs :][:pairs], block.sin[row * pairs :][:pairs]
    if block.in_neighbours != 0:
        for j in range(pairs):
            low, high = head[2 * j], head[2 * j + 1]
            head[2 * j] = low * cos[j] - high * sin[j]
            head[2 * j + 1] = high * cos[j] + low * sin[j]
    else:
        for j in range(pairs):
            low, high = head[j], head[pairs + j]
            head[j] = low * cos[j] - high * sin[j]
            head[pairs + j] = high * cos[j] + low * sin[j]


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
def put_head(target: Any, to: int, head: Any, dim: int) -> None:
    """Write a head from element `to` of `target` on, with its scale where its type has one."""
    scale = _ONE
    if largest_code(target) > _ZERO:
        scale = _scale_of(head, dim, largest_code(target))
        put_scale(target, to + dim, scale)
    for j in range(dim):
        put_number(target, to + j, head[j] / scale if scale > _ZERO else _ZERO)


@compiled
def _rotate_row(block: Any, row: int, head: Any) -> None:
    heads, kv_heads, dim, size = block.heads, block.kv_heads, block.dim, block.row
    source, to = row * block.columns, block.slots[row] * kv_heads * size
    whole = _ZERO, _ONE
    for index in range(heads + kv_heads):
        _load_head(block, source + block.places[index], head)
        if block.is_whole != 0 and (index == 0 or index == heads):
            width = (heads if index == 0 else kv_heads) * dim
            at = source + block.places[index]
            whole = spread(block.qkv, at, width, block.is_centered, block.epsilon)
        if block.is_late != 0:
            rotate_head(block, row, head)
        if block.weight.shape[0] > 0:
            _norm_head(block, index * dim, whole, head)
        if block.is_late == 0:
            rotate_head(block, row, head)
        if index < heads:
            put_head(block.q, (row * heads + index) * dim, head, dim)
        else:
            put_head(block.k, to + (index - heads) * size, head, dim)
    for index in range(kv_heads):
        _load_head(block, source + block.places[heads + kv_heads + index], head)
        put_head(block.v, to + index * size, head, dim)


@compiled
def _rotate(block: Any) -> None:
    """Every thread: the whole kernel `rotate`."""
    head = _head()
    first, end = next_rows(block)
    while first < end:
        for row in range(first, end):
            _rotate_row(block, row, head)
        first, end = next_rows(block)


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

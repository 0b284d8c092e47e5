"""The gated delta rule: linear attention whose state is a matrix for each head, which every row
decays and then corrects (Yang et al. 2024, arXiv:2412.06464).

    S    [k_dim, v_dim], the state of a head; k and q are normed to length 1, q is scaled
    S    = decay * S + k (beta * (v - decay * S^T k))^T
    out  = norm(S^T q) * silu(z)

decay = exp(rate * softplus(a + bias)) and beta = sigmoid(b) are numbers of each row and head. The
matrices before a step's first row come from a state slot, and those behind its last row go to
another (`StateSpans`). A row is computed in one fixed order in float32, whatever rows are beside it
and however its sequence is cut into steps. A thread computes a head of a sequence at a time, row
after row: the matrix is copied to its new place, where each row reads it twice and writes it once,
in a cache of the core.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types

from radixserve.kernels.cpu.activation import times_sigmoid
from radixserve.kernels.cpu.block import Block, Float, Float32s, Int, Int64s, Numbers
from radixserve.kernels.cpu.compile import compiled, on_stack
from radixserve.kernels.cpu.convolution import END, PART, SOURCE, TARGET, SpansBlock
from radixserve.kernels.cpu.delta_vectors import (
    WIDE,
    multiply_one,
    multiply_wide,
    update_one,
    update_wide,
)
from radixserve.kernels.cpu.rows import spread
from radixserve.kernels.cpu.vector import (
    LANES,
    add_atomically,
    copy,
    exp,
    fma,
    number_at,
    put_number,
    tile_exp,
)

MOST_DIM = 256
"""The largest sizes of a head's keys and values; that of values is a multiple of LANES."""

_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_STRIPE = 64  # what `tile_exp` takes
_LENGTH_EPSILON = np.float32(1e-6)  # added to squared lengths
_ATANH = tuple(np.float32(1 / n) for n in (15, 13, 11, 9, 7, 5, 3))
_keys, _queries, _deltas, _outs = (on_stack(types.float32, MOST_DIM) for _ in range(4))
_powers = on_stack(types.float32, _STRIPE)


class DeltaBlock(Block):
    """See the top. Value heads are shared out evenly among key heads, in order."""

    spans: SpansBlock
    qkv: Numbers  # [rows * (2 * key_heads * k_dim + heads * v_dim)]: all of q, of k, of v
    gates: Numbers  # [rows * columns]
    z_places: Int64s  # [heads]: where z of a head begins in a row of gates
    a_places: Int64s  # [heads]: where the number a is
    b_places: Int64s  # [heads]
    rates: Float32s  # [heads], not above 0
    biases: Float32s  # [heads], of a
    weight: Float32s  # [v_dim], of the norm
    out: Numbers  # [rows * heads * v_dim]
    matrices: Float32s  # [state slots * heads * k_dim * v_dim]: the states
    counter: Int64s  # [1]: heads of sequences that threads have taken; zero at the start
    columns: Int
    key_heads: Int
    heads: Int  # of values
    k_dim: Int
    v_dim: Int
    epsilon: Float  # of the norm


class Vectors(NamedTuple):
    """What `update` computes with."""

    keys: Any
    queries: Any
    added: Any
    outs: Any


class _Room(NamedTuple):
    """A thread's working memory."""

    keys: Any
    queries: Any
    deltas: Any
    outs: Any
    powers: Any


@compiled
def softplus(x: Any) -> Any:
    """log(1 + e**x), by the series of the inverse hyperbolic tangent."""
    power = exp(-abs(x))
    s = power / (_TWO + power)
    square, series = s * s, _ZERO
    for coefficient in _ATANH:
        series = fma(series, square, coefficient)
    series = fma(series, square, _ONE)
    return max(x, _ZERO) + _TWO * s * series


@compiled
def _load_unit(b: Any, at: int, scale: Any, target: Any) -> None:
    """A key or a query, normed to length 1 and scaled."""
    width = np.float32(b.k_dim)
    _, factor = spread(b.qkv, at, b.k_dim, 0, _LENGTH_EPSILON / width)
    factor = factor / np.sqrt(width) * scale
    for j in range(b.k_dim):
        target[j] = number_at(b.qkv, at + j) * factor


@compiled
def _correct(b: Any, row: int, head: int, first: int, decay: Any, room: _Room) -> None:
    """deltas = beta * (v - decay * S^T k), where S begins at element `first`."""
    deltas, size, column = room.deltas, b.v_dim, 0
    while column < size:
        if size - column >= WIDE * LANES:
            multiply_wide(b.matrices, first + column, size, b.k_dim, room.keys, deltas, column)
            column += WIDE * LANES
        else:
            multiply_one(b.matrices, first + column, size, b.k_dim, room.keys, deltas, column)
            column += LANES
    gate = number_at(b.gates, row * b.columns + b.b_places[head])
    beta = times_sigmoid(_ONE, gate, exp(-abs(gate)))
    width = 2 * b.key_heads * b.k_dim
    v = row * (width + b.heads * size) + width + head * size
    for j in range(size):
        deltas[j] = beta * (number_at(b.qkv, v + j) - decay * deltas[j])


@compiled
def update(matrices: Any, first: int, rows: int, size: int, decay: Any, by: Vectors) -> None:
    """S = decay * S + keys added^T, where S [rows, size] begins at element `first` of matrices;
    outs = S^T queries.
    """
    keys, queries, added, outs, column = by.keys, by.queries, by.added, by.outs, 0
    while column < size:
        at = first + column
        if size - column >= WIDE * LANES:
            update_wide(matrices, at, size, rows, keys, queries, added, decay, outs, column)
            column += WIDE * LANES
        else:
            update_one(matrices, at, size, rows, keys, queries, added, decay, outs, column)
            column += LANES


@compiled
def _write(b: Any, row: int, head: int, room: _Room) -> None:
    """The row's result: outs, normed and gated."""
    size, powers = b.v_dim, room.powers
    _, scale = spread(room.outs, 0, size, 0, b.epsilon)
    z, to = row * b.columns + b.z_places[head], (row * b.heads + head) * size
    for first in range(0, size, _STRIPE):
        count = min(_STRIPE, size - first)
        powers[count:] = _ZERO
        for j in range(count):
            powers[j] = -abs(number_at(b.gates, z + first + j))
        tile_exp(powers, 0, _ZERO)
        for j in range(count):
            gate = number_at(b.gates, z + first + j)
            normed = room.outs[first + j] * scale * b.weight[first + j]
            put_number(b.out, to + first + j, normed * times_sigmoid(gate, gate, powers[j]))


@compiled
def _row(b: Any, row: int, head: int, first: int, room: _Room) -> None:
    width = 2 * b.key_heads * b.k_dim + b.heads * b.v_dim
    query = row * width + head // (b.heads // b.key_heads) * b.k_dim
    _load_unit(b, query, _ONE / np.sqrt(np.float32(b.k_dim)), room.queries)
    _load_unit(b, query + b.key_heads * b.k_dim, _ONE, room.keys)
    a = number_at(b.gates, row * b.columns + b.a_places[head]) + b.biases[head]
    decay = exp(b.rates[head] * softplus(a))
    _correct(b, row, head, first, decay, room)
    vectors = Vectors(room.keys, room.queries, room.deltas, room.outs)
    update(b.matrices, first, b.k_dim, b.v_dim, decay, vectors)
    _write(b, row, head, room)


@compiled
def begin_part(parts: Any, part: int, matrices: Any, heads: int, head: int, size: int) -> Any:
    """The element where the matrix of a head begins in the state that a part writes. What it reads
    is copied there.
    """
    source, target = parts[part * PART + SOURCE], parts[part * PART + TARGET]
    first = (target * heads + head) * size
    if source < 0:
        matrices[first : first + size] = _ZERO
    else:
        copy(matrices, (source * heads + head) * size, matrices, first, size)
    return first


@compiled
def _compute(b: Any) -> None:
    """Every thread: take heads of sequences until none is left."""
    room = _Room(_keys(), _queries(), _deltas(), _outs(), _powers())
    size = b.k_dim * b.v_dim
    total = b.spans.count[0] * b.heads
    item = add_atomically(b.counter, 0, 1)
    while item < total:
        sequence, head = item // b.heads, item % b.heads
        for part in range(b.spans.starts[sequence], b.spans.starts[sequence + 1]):
            first = begin_part(b.spans.parts, part, b.matrices, b.heads, head, size)
            for row in range(b.spans.parts[part * PART], b.spans.parts[part * PART + END]):
                _row(b, row, head, first, room)
        item = add_atomically(b.counter, 0, 1)


@cache
def delta_kernel(dtype: torch.dtype) -> Callable[[Any], None]:
    """The kernel of `DeltaBlock` for activations of `dtype`. Every thread calls it with the block's
    address. `native` compiles it.
    """
    read = DeltaBlock.reader(dtype)

    def compute(address: Any) -> None:
        _compute(read(address))

    compute.__name__ = f"delta_rule_{dtype}".replace("torch.", "")
    return compute

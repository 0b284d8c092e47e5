"""The state space of Mamba 2: a matrix for each head, which every row decays and adds to (Dao & Gu
2024, arXiv:2405.21060).

    S    [n_dim, p_dim], the state of a head; B and C are shared by the heads of a group
    dt   = softplus(step + bias), within limits
    S    = exp(rate * dt) * S + B (dt * x)^T
    out  = S^T C + skip * x

Where states come from and go to, and why cuts and other rows change no bit, is told in
`kernels.cpu.delta_rule`.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from numba import types

from radixserve.kernels.cpu.block import Block, Float, Float32s, Int, Int64s, Numbers
from radixserve.kernels.cpu.compile import compiled, on_stack
from radixserve.kernels.cpu.convolution import END, PART, SpansBlock
from radixserve.kernels.cpu.delta_rule import MOST_DIM, Vectors, begin_part, softplus, update
from radixserve.kernels.cpu.vector import add_atomically, exp, fma, number_at, put_number

_keys, _queries, _added, _outs = (on_stack(types.float32, MOST_DIM) for _ in range(4))


class SpaceBlock(Block):
    """See the top. Heads are shared out evenly among groups, in order."""

    spans: SpansBlock
    x: Numbers  # [rows * (heads * p_dim + 2 * groups * n_dim)]: all of x, of B, of C
    steps: Numbers  # [rows * columns]
    places: Int64s  # [heads]: where the step of a head is in a row of steps
    rates: Float32s  # [heads], not above 0
    biases: Float32s  # [heads], of steps
    skips: Float32s  # [heads]
    out: Numbers  # [rows * heads * p_dim]
    matrices: Float32s  # [state slots * heads * n_dim * p_dim]: the states
    counter: Int64s  # [1]: heads of sequences that threads have taken; zero at the start
    columns: Int
    groups: Int
    n_dim: Int
    p_dim: Int
    least: Float  # dt
    most: Float  # dt


@compiled
def _row(b: Any, row: int, head: int, first: int, by: Vectors) -> None:
    heads, size = b.places.shape[0], b.p_dim
    x = row * (heads * size + 2 * b.groups * b.n_dim) + head * size
    group = row * (heads * size + 2 * b.groups * b.n_dim) + heads * size
    group += head // (heads // b.groups) * b.n_dim
    for j in range(b.n_dim):
        by.keys[j] = number_at(b.x, group + j)
        by.queries[j] = number_at(b.x, group + b.groups * b.n_dim + j)
    dt = softplus(number_at(b.steps, row * b.columns + b.places[head]) + b.biases[head])
    dt = min(max(dt, b.least), b.most)
    for j in range(size):
        by.added[j] = dt * number_at(b.x, x + j)
    decay = exp(b.rates[head] * dt)
    update(b.matrices, first, b.n_dim, size, decay, by)
    to, skip = (row * heads + head) * size, b.skips[head]
    for j in range(size):
        put_number(b.out, to + j, fma(skip, number_at(b.x, x + j), by.outs[j]))


@compiled
def _compute(b: Any) -> None:
    """Every thread: take heads of sequences until none is left."""
    by = Vectors(_keys(), _queries(), _added(), _outs())
    heads, size = b.places.shape[0], b.n_dim * b.p_dim
    total = b.spans.count[0] * heads
    item = add_atomically(b.counter, 0, 1)
    while item < total:
        sequence, head = item // heads, item % heads
        for part in range(b.spans.starts[sequence], b.spans.starts[sequence + 1]):
            first = begin_part(b.spans.parts, part, b.matrices, heads, head, size)
            for row in range(b.spans.parts[part * PART], b.spans.parts[part * PART + END]):
                _row(b, row, head, first, by)
        item = add_atomically(b.counter, 0, 1)


@cache
def space_kernel(dtype: torch.dtype) -> Callable[[Any], None]:
    """The kernel of `SpaceBlock` for activations of `dtype`. Every thread calls it with the block's
    address. `native` compiles it.
    """
    read = SpaceBlock.reader(dtype)

    def compute(address: Any) -> None:
        _compute(read(address))

    compute.__name__ = f"state_space_{dtype}".replace("torch.", "")
    return compute

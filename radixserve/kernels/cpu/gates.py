"""Gates: what a head attends is multiplied by the sigmoid of numbers that the linear of its queries
computes, too, and what a state gives by SiLU of such numbers. As in `kernels.cpu.rows`, one path of
code computes a row.
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

from radixserve.kernels.cpu.activation import times_sigmoid
from radixserve.kernels.cpu.block import Block, Int, Int64s, Numbers
from radixserve.kernels.cpu.compile import compiled, on_stack
from radixserve.kernels.cpu.rows import next_rows
from radixserve.kernels.cpu.vector import number_at, put_number, tile_exp

_ZERO = np.float32(0)
_STRIPE = 64  # columns at a time: what `tile_exp` takes
_stripe = on_stack(types.float32, _STRIPE)


class GateBlock(Block):
    """x[row, head] *= sigmoid(gates[row, place of the head]), or SiLU of that."""

    x: Numbers  # [rows * heads * dim]
    gates: Numbers  # [rows * columns]
    places: Int64s  # [heads]: where the gates of a head begin in a row
    counter: Int64s  # [1]: groups of rows that threads have taken; zero at the start
    rows: Int
    columns: Int
    dim: Int
    is_silu: Int


@compiled
def _gate_head(b: Any, at: int, gate: int, powers: Any) -> None:
    for first in range(0, b.dim, _STRIPE):
        count = min(_STRIPE, b.dim - first)
        powers[count:] = _ZERO
        for j in range(count):
            powers[j] = -abs(number_at(b.gates, gate + first + j))
        tile_exp(powers, 0, _ZERO)
        for j in range(count):
            inner = number_at(b.gates, gate + first + j)
            x = number_at(b.x, at + first + j)
            x = x * inner if b.is_silu != 0 else x
            put_number(b.x, at + first + j, times_sigmoid(x, inner, powers[j]))


@compiled
def _gate(b: Any) -> None:
    """Every thread: the whole kernel."""
    powers, heads = _stripe(), b.places.shape[0]
    first, end = next_rows(b)
    while first < end:
        for row in range(first, end):
            for head in range(heads):
                at, gate = (row * heads + head) * b.dim, row * b.columns + b.places[head]
                _gate_head(b, at, gate, powers)
        first, end = next_rows(b)


@cache
def gate_kernel(dtype: torch.dtype) -> Callable[[Any], None]:
    """The kernel of `GateBlock` for activations of `dtype`. Every thread calls it with the block's
    address. `native` compiles it.
    """
    read = GateBlock.reader(dtype)

    def gate(address: Any) -> None:
        _gate(read(address))

    gate.__name__ = f"gate_{dtype}".replace("torch.", "")
    return gate

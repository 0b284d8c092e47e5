"""What latent attention (DeepSeek-AI 2024, arXiv:2405.04434) does before and after attention. Of a
token only one key and one value for all heads are cached, which are made of the same latent:

    K of a token    its latent, normed, then a few numbers that are rotated
    V of a token    its latent, normed
    a query         by the head's own weight in the space of latents; then its rotated numbers
    a result        a sum of latents, which another weight of the head makes its value of

`store_latent` writes K and V, `multiply_heads` multiplies the numbers of each head by that head's
own weight. Both compute a row by itself: an output is one chain of multiply-adds, in ascending
order. Arithmetic is float32, and each value is rounded once, when it is written.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from numba import types

from radixserve.kernels.cpu import levels
from radixserve.kernels.cpu.attention.kernel import multiplier
from radixserve.kernels.cpu.attention.memory import ROWS
from radixserve.kernels.cpu.block import (
    Block,
    Float,
    Float32s,
    Int,
    Int32s,
    Int64s,
    KVNumbers,
    Numbers,
)
from radixserve.kernels.cpu.compile import compiled, on_stack
from radixserve.kernels.cpu.levels import Level
from radixserve.kernels.cpu.products import Fold, Rows, panel_of
from radixserve.kernels.cpu.rows import next_rows, put_head, rotate_head, spread
from radixserve.kernels.cpu.vector import add_atomically, number_at, put_number

MOST = 1024
"""How many numbers a latent with its rotated part, and a head, may have."""

_SLAB = 8 * ROWS  # rows that a thread takes at a time, at one head
_head = on_stack(types.float32, MOST)
_heads = on_stack(types.float32, ROWS * MOST)


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """A weight for each head."""

    weight: torch.Tensor  # float32 [heads, inputs, outputs padded to whole panels]
    order: torch.Tensor  # int32 [inputs]: 0, 1, 2, ...
    outputs: int

    @classmethod
    def of(cls, weight: torch.Tensor) -> HeadWeights:
        """Pack a weight [heads, inputs, outputs]."""
        inputs, outputs = weight.shape[1:]
        padded = F.pad(weight.float(), (0, -outputs % panel_of(wide=True))).contiguous()
        return cls(padded, torch.arange(inputs, dtype=torch.int32), outputs)


class LatentBlock(Block):
    """K and V of each row, written to the row's slot."""

    kv: Numbers  # [rows * (rank + rotated)]: the latent, and what is rotated of the key
    weight: Float32s  # [rank], of the latent's norm
    cos: Float32s  # [rows * pairs]
    sin: Float32s  # [rows * pairs]
    k: KVNumbers  # [slots * k_row]
    v: KVNumbers  # [slots * v_row]
    slots: Int64s  # [rows]
    counter: Int64s
    rows: Int
    rank: Int
    rotated: Int
    k_row: Int  # elements of a row in the pool
    v_row: Int
    pairs: Int
    in_neighbours: Int  # as in `RotateBlock`
    epsilon: Float


class HeadsBlock(Block):
    """The first `inputs` numbers of each head of each row, times the head's weight; then the rest,
    rotated.
    """

    x: Numbers  # [rows * heads * (inputs + rotated)]
    weight: Float32s  # [heads * inputs * padded]
    order: Int32s  # as in `HeadWeights`
    cos: Float32s  # [rows * pairs], or empty where nothing is rotated
    sin: Float32s
    out: Numbers  # [rows * heads * (outputs + rotated)]
    counter: Int64s
    rows: Int
    heads: Int
    inputs: Int
    outputs: Int
    padded: Int  # columns of a head's weight
    rotated: Int
    pairs: Int
    in_neighbours: Int


@compiled
def _store_row(block: Any, row: int, key: Any, tail: Any) -> None:
    rank, rotated = block.rank, block.rotated
    at, slot = row * (rank + rotated), block.slots[row]
    _, scale = spread(block.kv, at, rank, 0, block.epsilon)
    for j in range(rank):
        key[j] = number_at(block.kv, at + j) * scale * block.weight[j]
    for j in range(rotated):
        tail[j] = number_at(block.kv, at + rank + j)
    rotate_head(block, row, tail)
    for j in range(rotated):
        key[rank + j] = tail[j]
    put_head(block.k, slot * block.k_row, key, rank + rotated)
    put_head(block.v, slot * block.v_row, key, rank)


@compiled
def _store(block: Any) -> None:
    """Every thread: the whole kernel `store_latent`."""
    key, tail = _head(), _head()
    first, end = next_rows(block)
    while first < end:
        for row in range(first, end):
            _store_row(block, row, key, tail)
        first, end = next_rows(block)


@compiled
def _multiply_rows(
    multiply: Any, block: Any, head: int, first: int, count: int, x: Any, y: Any
) -> None:
    """At one head, rows [first, first + count)."""
    inputs, padded = block.inputs, block.padded
    size = inputs + block.rotated
    for r in range(count):
        source = ((first + r) * block.heads + head) * size
        for i in range(inputs):
            x[r * inputs + i] = number_at(block.x, source + i)
    weight = Rows(block.weight, block.order, 0, inputs, head * inputs * padded, padded, padded)
    nothing = Rows(block.weight, block.order, 0, 0, 0, 0, 0)
    multiply(count, x, 0, inputs, weight, padded, y, 0, Fold(y, y, 0, 0), nothing)
    for r in range(count):
        target = ((first + r) * block.heads + head) * (block.outputs + block.rotated)
        for j in range(block.outputs):
            put_number(block.out, target + j, y[r * padded + j])


@compiled
def _rotate_rest(block: Any, head: int, row: int, tail: Any) -> None:
    place, rotated = row * block.heads + head, block.rotated
    source = place * (block.inputs + rotated) + block.inputs
    target = place * (block.outputs + rotated) + block.outputs
    for j in range(rotated):
        tail[j] = number_at(block.x, source + j)
    rotate_head(block, row, tail)
    for j in range(rotated):
        put_number(block.out, target + j, tail[j])


@cache
def _item(wide: bool) -> Any:
    multiply = multiplier(wide)

    @compiled
    def item(block: Any, head: int, first: int, end: int, x: Any, y: Any) -> None:
        """At one head, rows [first, end)."""
        for row in range(first, end, ROWS):
            _multiply_rows(multiply, block, head, row, min(ROWS, end - row), x, y)
        for row in range(first, end):
            _rotate_rest(block, head, row, x)

    return item


@compiled
def _multiply(item: Any, block: Any) -> None:
    """Every thread: the whole kernel `multiply_heads`."""
    x, y = _heads(), _heads()
    slabs = -(-block.rows // _SLAB)
    taken = add_atomically(block.counter, 0, 1)
    while taken < block.heads * slabs:
        first = taken % slabs * _SLAB
        item(block, taken // slabs, first, min(block.rows, first + _SLAB), x, y)
        taken = add_atomically(block.counter, 0, 1)


@cache
def store_latent_kernel(numbers: torch.dtype, kv: torch.dtype) -> Callable[[Any], None]:
    """The kernel of `LatentBlock` for activations and a pool of these dtypes. Every thread calls it
    with the block's address, as the one below. `native` compiles both.
    """
    read = LatentBlock.reader(numbers, kv)

    def store_latent(address: Any) -> None:
        _store(read(address))

    store_latent.__name__ = f"store_latent_{numbers}_{kv}".replace("torch.", "")
    return store_latent


def multiply_heads_kernel(numbers: torch.dtype) -> Callable[[Any], None]:
    """The kernel of `HeadsBlock` for activations of this dtype and the current level."""
    return _multiply_heads(numbers, levels.current() >= Level.AVX512)


@cache
def _multiply_heads(numbers: torch.dtype, wide: bool) -> Callable[[Any], None]:
    read, item = HeadsBlock.reader(numbers), _item(wide)

    def multiply_heads(address: Any) -> None:
        _multiply(item, read(address))

    width = "wide" if wide else "narrow"
    multiply_heads.__name__ = f"multiply_heads_{numbers}_{width}".replace("torch.", "")
    return multiply_heads

"""The GEMM kernels that multiply with vectors: fused multiply-adds, or products of pairs of
bfloat16.

Each output is a sum of chains of CHAIN inputs, chain added to chain, and each chain is a sum in
ascending order. A thread multiplies a panel by a slice of the rows block by block: a block is some
inputs of the panel and stays in the first-level cache while it is multiplied by row after row.
Codes (`quantised`) are decoded into a block of float32 while the one before is multiplied.

    panel    inputs 0-63   | 64-127 | ...  | 448-511 | 512-575 | ...
    block    0             | 1      |      | 7       | 8
    sums     sums = block 0, += block 1 ... += block 7: total = sums; sums = block 8 ...
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import types

from radixserve.kernels.cpu.compile import compiled, data_of, floats_at, halves_at, on_stack
from radixserve.kernels.cpu.gemm.activations import copy_rows
from radixserve.kernels.cpu.gemm.block import (
    GemmBlock,
    Item,
    item_at,
    next_segment,
    num_items,
    sums_writer,
    take_item,
)
from radixserve.kernels.cpu.gemm.panel_products import WIDTH, Operands, panel_product
from radixserve.kernels.cpu.gemm.quantised_products import (
    GROUP,
    PREFETCH_BYTES,
    Records,
    coded_0,
    coded_1,
    coded_2,
    coded_3,
    coded_4,
    record_size,
)

MOST_ROWS = 96
"""The most rows that are multiplied in one pass."""

CHAIN = 512
"""Inputs that are summed in one chain."""

_INPUTS = 64  # of a block: 64 inputs x 64 outputs x 4 bytes are a third of the first-level cache
SEGMENT = _INPUTS * PREFETCH_BYTES
"""Bytes of the next K/V that are prefetched while one block is multiplied."""

_LAST = 4  # rows whose multiplication is interleaved with decoding the next block
_FLOAT, _BFLOAT = 32, 16  # bits of a number of the weight

_room_for_total, _room_for_sums = (on_stack(types.float32, MOST_ROWS * WIDTH) for _ in range(2))
_room_for_block = on_stack(types.float32, _INPUTS * WIDTH)
_ZERO = np.float32(0)


class Room(NamedTuple):
    """The working memory of one thread, flat float32, on its stack."""

    total: Any  # [rows * 64]: sum of the finished chains
    sums: Any  # [rows * 64]: the chains that are being summed
    block: Any  # [inputs of a block * 64]: a block of the weight, decoded; unused for float32


@compiled
def _words(b: Any, inputs: int) -> Any:
    """Words of memory that some inputs of a panel take, whole groups if the weight has codes."""
    if b.bits == _FLOAT:
        return inputs * WIDTH
    if b.bits == _BFLOAT:
        return inputs * WIDTH // 2
    return inputs // GROUP * record_size(b.bits)


@compiled
def _depth(b: Any) -> Any:
    """Inputs of a block. Every block of a weight in codes has the same number."""
    return _INPUTS if b.bits >= _BFLOAT or b.padded % _INPUTS == 0 else GROUP


@cache
def gemm_kernel(operands: Operands, wide: bool, bfloat16: bool) -> Callable[[Any], None]:
    """The kernel for activations of float32 or bfloat16. `operands` says how it multiplies by
    bfloat16 panels; `wide` is for processors with AVX-512. `native` compiles it.
    """
    read = GemmBlock.read_bfloat16 if bfloat16 else GemmBlock.read
    multiply = panel_product(Operands.FLOATS, wide)
    multiply_halves = panel_product(operands, wide)
    pairs = operands is Operands.PAIRS
    write_sums = sums_writer(rounds=pairs)

    @compiled
    def place_of_x(b: Any) -> Any:
        """The address of x as it is multiplied, flat [rows, padded]."""
        count = b.rows * b.padded
        if len(b.scratch) == 0:
            return data_of(b.x)
        if pairs:
            copy_rows(b, halves_at(data_of(b.scratch), count))
        else:
            copy_rows(b, floats_at(data_of(b.scratch), count))
        return data_of(b.scratch)

    @compiled
    def multiply_block(
        b: Any, x: Any, item: Item, first: int, depth: int, wt: int, room: Room, ahead: int
    ) -> None:
        """Continue the chains of all rows over the inputs [first, first + depth). The weight
        `ahead` words further on is prefetched.
        """
        at, rows, stride = item.row * b.padded + first, item.rows, b.padded
        if b.bits == _FLOAT:
            multiply(x, at, stride, rows, b.weight, wt, room.sums, 0, depth, ahead)
        elif pairs:
            at, stride, depth = at // 2, stride // 2, depth // 2
            multiply_halves(x, at, stride, rows, b.weight, wt, room.sums, 0, depth, ahead)
        else:
            multiply_halves(x, at, stride, rows, b.weight, wt, room.sums, 0, depth // 2, ahead)

    @compiled
    def multiply_codes(
        b: Any, x: Any, item: Item, first: int, rows: int, later: Records, room: Room
    ) -> None:
        """Continue the chains of the first `rows` rows over the block in `room`, then leave the
        next one there, decoded from `later`. With 0 rows it decodes only.
        """
        stride, depth, upcoming = b.padded, _depth(b), next_segment(b)
        last = min(rows, _LAST) if wide else 0
        at, before = item.row * stride + first, rows - last
        if before:
            multiply(x, at, stride, before, room.block, 0, room.sums, 0, depth, 0)
        here, to, block, sums = at + before * stride, before * WIDTH, room.block, room.sums
        if last == 4:
            coded_4(x, here, stride, block, sums, to, depth, later, upcoming)
        elif last == 3:
            coded_3(x, here, stride, block, sums, to, depth, later, upcoming)
        elif last == 2:
            coded_2(x, here, stride, block, sums, to, depth, later, upcoming)
        elif last == 1:
            coded_1(x, here, stride, block, sums, to, depth, later, upcoming)
        else:
            coded_0(x, here, stride, block, sums, to, depth, later, upcoming)

    @compiled
    def records(b: Any, begin: int) -> Records:
        """The records of the block that begins at word `begin`; decoding them prefetches the block
        behind.
        """
        return Records(b.weight, begin, _words(b, _depth(b)), b.bits)

    @compiled
    def multiply_panel(b: Any, x: Any, item: Item, following: int, room: Room) -> None:
        """room.total[rows, 64] = a slice of x @ one panel, block after block.

        Memory is read ahead: while one block is multiplied the next one is prefetched, or decoded
        while the block behind that one is prefetched (codes). `following` is the panel that this
        thread multiplies next; its first block is read ahead beside the last block of this one.
        """
        inputs, depth, count = b.padded, _depth(b), item.rows * WIDTH
        room.total[:count], room.sums[:count] = _ZERO, _ZERO
        size = _words(b, inputs)
        begin, after = item.panel * size, following * size
        for first in range(0, inputs, depth):
            stop = min(first + depth, inputs)
            wt = begin + _words(b, first)
            later = begin + _words(b, stop) if stop < inputs else after
            if b.bits >= _BFLOAT:
                multiply_block(b, x, item, first, stop - first, wt, room, later - wt)
            else:
                multiply_codes(b, x, item, first, item.rows, records(b, later), room)
            if stop == inputs or stop % CHAIN == 0:
                for i in range(count):
                    room.total[i] = room.sums[i] if stop <= CHAIN else room.total[i] + room.sums[i]
                    room.sums[i] = _ZERO

    def kernel(address: Any) -> None:
        """One thread: take items until none is left."""
        b = read(address)
        x = floats_at(place_of_x(b), b.rows * b.padded)  # pairs of bfloat16 look like floats
        room = Room(_room_for_total(), _room_for_sums(), _room_for_block())
        index, count = take_item(b), num_items(b)
        if b.bits < _BFLOAT and index < count:  # decode the very first block
            item = item_at(b, index)
            later = records(b, item.panel * _words(b, b.padded))
            multiply_codes(b, x, item, 0, 0, later, room)
        while index < count:
            item, index = item_at(b, index), take_item(b)
            multiply_panel(b, x, item, item_at(b, index).panel, room)
            first = item.panel * WIDTH
            write_sums(b, item.row, item.rows, first, WIDTH, room.total, 0)

    names = operands.name, "wide" if wide else "narrow", "bfloat16" if bfloat16 else "float32"
    kernel.__name__ = "_".join(("multiply", *names)).lower()
    return kernel

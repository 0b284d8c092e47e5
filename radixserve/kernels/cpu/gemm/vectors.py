"""The GEMM kernels that multiply with vectors: fused multiply-adds, or products of pairs of
bfloat16.

Each output is a sum of chains of CHAIN inputs, chain added to chain, and each chain is a sum in
ascending order. A thread multiplies a panel by a slice of the rows block by block: a block is some
inputs of the panel and stays in the first-level cache while it is multiplied by row after row.
A unit of codes (`formats`) is decoded into a block of float32.

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
    num_items,
    own_run,
    prefetch_segment,
    sums_writer,
    take_item,
)
from radixserve.kernels.cpu.gemm.decoding import unit_decoder
from radixserve.kernels.cpu.gemm.formats import UNIT, Format
from radixserve.kernels.cpu.gemm.panel_products import WIDTH, Operands, panel_product

MOST_ROWS = 96
"""The most rows that are multiplied in one pass."""

CHAIN = 512
"""Inputs that are summed in one chain."""

_INPUTS = 64  # of a block: 64 inputs x 64 outputs x 4 bytes are a third of the first-level cache
_FLOAT = 32  # bits of a number of the weight

_room_for_total, _room_for_sums = (on_stack(types.float32, MOST_ROWS * WIDTH) for _ in range(2))
_room_for_block = on_stack(types.float32, UNIT * WIDTH)
_ZERO = np.float32(0)


class Room(NamedTuple):
    """The working memory of one thread, flat float32, on its stack."""

    total: Any  # [rows * 64]: sum of the finished chains
    sums: Any  # [rows * 64]: the chains that are being summed
    block: Any  # [32 * 64]: a unit of codes, decoded; unused for floats


@compiled
def _words(b: Any, inputs: int) -> Any:
    """Words of memory that some inputs of a panel of floats take."""
    return inputs * WIDTH if b.bits == _FLOAT else inputs * WIDTH // 2


@compiled
def _end_chain(b: Any, stop: int, count: int, room: Room) -> None:
    """Add the sums to the total if a chain ends before input `stop`."""
    if stop == b.padded or stop % CHAIN == 0:
        for i in range(count):
            room.total[i] = room.sums[i] if stop <= CHAIN else room.total[i] + room.sums[i]
            room.sums[i] = _ZERO


@cache
def gemm_kernel(
    operands: Operands, wide: bool, bfloat16: bool, format: Format | None = None
) -> Callable[[Any], None]:
    """The kernel for activations of float32 or bfloat16, and panels of floats or of codes in a
    format. `operands` says how it multiplies by bfloat16 panels; `wide` is for processors with
    AVX-512. `native` compiles it.
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
    def multiply_floats(b: Any, x: Any, item: Item, following: int, room: Room) -> None:
        """room.total[rows, 64] = a slice of x @ one panel, block after block.

        While one block is multiplied the next one is prefetched. `following` is the panel that this
        thread multiplies next; its first block is prefetched beside the last block of this one.
        """
        inputs, count = b.padded, item.rows * WIDTH
        room.total[:count], room.sums[:count] = _ZERO, _ZERO
        size = _words(b, inputs)
        begin, after = item.panel * size, following * size
        for first in range(0, inputs, _INPUTS):
            stop = min(first + _INPUTS, inputs)
            wt = begin + _words(b, first)
            later = begin + _words(b, stop) if stop < inputs else after
            multiply_block(b, x, item, first, stop - first, wt, room, later - wt)
            _end_chain(b, stop, count, room)

    decode_unit: Any = None if format is None else unit_decoder(format)

    @compiled
    def multiply_codes(b: Any, x: Any, item: Item, following: int, room: Room) -> None:
        """The same for a panel of codes, unit after unit."""
        count, units, stride = item.rows * WIDTH, b.padded // UNIT, b.padded
        room.total[:count], room.sums[:count] = _ZERO, _ZERO
        for unit in range(units):
            decode_unit(b.weight, item.panel, units, unit, room.block)
            prefetch_segment(b)
            at = item.row * stride + unit * UNIT
            multiply(x, at, stride, item.rows, room.block, 0, room.sums, 0, UNIT, 0)
            _end_chain(b, (unit + 1) * UNIT, count, room)

    multiply_panel = multiply_floats if format is None else multiply_codes

    def kernel(address: Any) -> None:
        """One thread: take items until none is left."""
        b = read(address)
        x = floats_at(place_of_x(b), b.rows * b.padded)  # pairs of bfloat16 look like floats
        room = Room(_room_for_total(), _room_for_sums(), _room_for_block())
        own, count = own_run(b), num_items(b)
        index = take_item(b, own)
        while index < count:
            item, index = item_at(b, index), take_item(b, own)
            multiply_panel(b, x, item, item_at(b, index).panel, room)
            first = item.panel * WIDTH
            write_sums(b, item.row, item.rows, first, WIDTH, room.total, 0)

    what = operands.name if format is None else format.name
    names = what, "wide" if wide else "narrow", "bfloat16" if bfloat16 else "float32"
    kernel.__name__ = "_".join(("multiply", *names)).lower()
    return kernel

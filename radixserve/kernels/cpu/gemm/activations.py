"""Brings rows of x into the form that a GEMM kernel multiplies, in its scratch memory.

All threads take rows until none is left, then wait for each other. The values are those of x;
padding inputs are zero.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from radixserve.kernels.cpu.amx import STEP, TILE_BYTES, TILE_ROWS
from radixserve.kernels.cpu.compile import Intrinsic, compiled, on_stack
from radixserve.kernels.cpu.gemm.block import PREPARED, wait_for_others
from radixserve.kernels.cpu.vector import (
    LANES,
    VECTOR,
    add_atomically,
    element_at,
    load_numbers,
    number_at,
    put_number,
    store_numbers,
)

_TILE = TILE_BYTES // 2  # numbers of a tile
_UNIT = 16  # tiles that a thread takes at a time
_ZERO = np.float32(0)
_INFINITE = ir.Constant(VECTOR, [float("inf")] * LANES)
_MINUS = ir.Constant(VECTOR, [float("-inf")] * LANES)
_room_for_step = on_stack(types.float32, STEP)


@compiled
def copy_rows(b: Any, target: Any) -> None:
    """Copy x to `target` [rows, padded], float32 or bfloat16."""
    row = add_atomically(b.counter, PREPARED, 1)
    while row < b.rows:
        begin, to = row * b.inputs, row * b.padded
        for i in range(b.inputs):
            put_number(target, to + i, number_at(b.x, begin + i))
        for i in range(b.inputs, b.padded):
            put_number(target, to + i, _ZERO)
        row = add_atomically(b.counter, PREPARED, 1)
    wait_for_others(b)


@compiled
def copy_tiles(b: Any, target: Any, parts: int) -> None:
    """Copy x to `target` (bfloat16) as tiles of 16 rows and 32 inputs, [tiles of rows][tiles of
    inputs][parts][16][32]. The values of x are the sums of `parts` bfloat16.
    """
    steps = b.padded // STEP
    units = (steps + _UNIT - 1) // _UNIT  # of a tile of rows
    unit = add_atomically(b.counter, PREPARED, 1)
    while unit // units * TILE_ROWS < b.rows:
        first, begin = unit // units * TILE_ROWS, unit % units * _UNIT
        for step in range(begin, min(begin + _UNIT, steps)):
            tile = (first // TILE_ROWS * steps + step) * parts * _TILE
            count = min(STEP, b.inputs - step * STEP)
            for row in range(first, min(first + TILE_ROWS, b.rows)):
                to = tile + row % TILE_ROWS * STEP
                _copy_step(b.x, row * b.inputs + step * STEP, count, target, to, parts)
        unit = add_atomically(b.counter, PREPARED, 1)
    wait_for_others(b)


@compiled
def _copy_step(x: Any, begin: int, count: int, target: Any, to: int, parts: int) -> None:
    """Copy up to 32 inputs of a row, zeros behind them."""
    if count == STEP:
        _copy_whole_step(x, begin, target, to, parts)
    else:
        values = _room_for_step()
        values[:] = _ZERO
        for i in range(count):
            values[i] = number_at(x, begin + i)
        _copy_whole_step(values, 0, target, to, parts)


@compiled
def _copy_whole_step(x: Any, begin: int, target: Any, to: int, parts: int) -> None:
    for half in range(0, STEP, LANES):
        if parts == 1:
            _split_1(x, begin + half, target, to + half)
        else:
            _split_3(x, begin + half, target, to + half)


def _split(parts: int) -> Intrinsic:
    """Generates: write LANES numbers of x as the sums of `parts` bfloat16, a tile apart: a number
    rounded, the rest rounded, and so on. With three parts the sum is exact, because they have 8
    bits each and a float32 has 24. What is not finite is the first part, and the others are zero.
    """

    @intrinsic
    def split(typingctx: Any, x: Any, at: Any, target: Any, to: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kinds = signature.args
            source = element_at(context, builder, kinds[0], args[0], args[1])
            place = element_at(context, builder, kinds[2], args[2], args[3])
            if source.type == place.type:  # bfloat16 already
                cgutils.raw_memcpy(builder, place, source, _number(LANES), 2)
                return context.get_dummy_value()
            zero = ir.Constant(VECTOR, [0.0] * LANES)
            rest = load_numbers(builder, source)
            for part in range(parts):
                here = builder.gep(place, [_number(part * _TILE)])
                store_numbers(builder, rest, here)
                if part < parts - 1:
                    rest = builder.fsub(rest, load_numbers(builder, here))
                    rest = builder.select(builder.fcmp_ordered("<", rest, _INFINITE), rest, zero)
                    rest = builder.select(builder.fcmp_ordered(">", rest, _MINUS), rest, zero)
            return context.get_dummy_value()

        return types.void(x, types.intp, target, types.intp), generate

    return split  # type: ignore[no-any-return]


def _number(value: int) -> ir.Constant:
    return ir.Constant(ir.IntType(64), value)


_split_1, _split_3 = _split(1), _split(3)

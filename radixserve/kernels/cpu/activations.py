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
from numba.extending import intrinsic

from radixserve.kernels.cpu.compile import Intrinsic, compiled, on_stack
from radixserve.kernels.cpu.gemm_block import PREPARED, wait_for_others
from radixserve.kernels.cpu.tiles import STEP, TILE_BYTES, TILE_ROWS
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
    row = add_atomically(b.counter, PREPARED, 1)
    while row < b.rows:
        place = (row // TILE_ROWS * steps * parts) * _TILE + row % TILE_ROWS * STEP
        for step in range(steps):
            begin = row * b.inputs + step * STEP
            count = min(STEP, b.inputs - step * STEP)
            _copy_step(b.x, begin, count, target, place + step * parts * _TILE, parts)
        row = add_atomically(b.counter, PREPARED, 1)
    wait_for_others(b)


@compiled
def _copy_step(x: Any, begin: int, count: int, target: Any, to: int, parts: int) -> None:
    """Copy up to 32 inputs of a row, zeros behind them."""
    if count == STEP:
        for half in range(0, STEP, LANES):
            if parts == 1:
                _split_1(x, begin + half, target, to + half)
            else:
                _split_3(x, begin + half, target, to + half)
    else:
        values = _room_for_step()
        values[:] = _ZERO
        for i in range(count):
            values[i] = number_at(x, begin + i)
        for half in range(0, STEP, LANES):
            if parts == 1:
                _split_1(values, half, target, to + half)
            else:
                _split_3(values, half, target, to + half)


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
            zero = ir.Constant(VECTOR, [0.0] * LANES)
            rest = load_numbers(builder, source)
            for part in range(parts):
                here = builder.gep(place, [ir.Constant(args[1].type, part * _TILE)])
                store_numbers(builder, rest, here)
                rest = builder.fsub(rest, load_numbers(builder, here))
                rest = builder.select(builder.fcmp_ordered("<", rest, _INFINITE), rest, zero)
                rest = builder.select(builder.fcmp_ordered(">", rest, _MINUS), rest, zero)
            return context.get_dummy_value()

        return types.void(x, types.intp, target, types.intp), generate

    return split  # type: ignore[no-any-return]


_split_1, _split_3 = _split(1), _split(3)

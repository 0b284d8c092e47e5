"""What layers may do to attention scores before the softmax besides scaling them: leave out those
before a window, cap them, add a slope times the distance (`LayerAttention`).

Each kernel is compiled twice: for plain layers, which do nothing of this, and for special ones,
which do any of it as their block says. What becomes of a score depends on row and position alone.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from radixserve.kernels.cpu.attention.block import AttentionBlock
from radixserve.kernels.cpu.attention.work import TILE
from radixserve.kernels.cpu.compile import compiled
from radixserve.kernels.cpu.vector import (
    FLOAT,
    LANES,
    VECTOR,
    element_at,
    load,
    splat,
    store,
    vector_fma,
    vector_tanh,
)

_ZERO, _ONE = np.float32(0), np.float32(1)


class Rules(NamedTuple):
    """The rules for scores that a kernel is compiled for: two compiled functions."""

    # (scratch, row, start): which position of the tile that begins at position `start` is the first
    # that the row sees; negative if it sees earlier ones, too
    begin: Any
    # (layer, scratch, row, at, start, scaling): changes the row's scores of that tile, 64 of
    # scratch.scores, from `at` on. They still have to be multiplied by `scaling`; returns by what
    # they have to be afterwards
    change: Any


_VECTORS = TILE // LANES


@intrinsic
def _cap(typingctx: Any, scores: Any, at: Any, scaling: Any, cap: Any) -> Any:
    """scores[i] = cap * tanh(scores[i] * scaling / cap) for a tile's scores, from `at` on."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = element_at(context, builder, signature.args[0], args[0], args[1])
        by, cap = splat(builder, builder.fdiv(args[2], args[3])), splat(builder, args[3])
        for i in range(_VECTORS):
            place = builder.gep(data, [ir.Constant(args[1].type, i * LANES)])
            part = builder.fmul(load(builder, place), by)
            store(builder, builder.fmul(vector_tanh(builder, part), cap), place)
        return context.get_dummy_value()

    return types.void(scores, types.intp, types.float32, types.float32), generate


@intrinsic
def _slope(typingctx: Any, scores: Any, at: Any, scaling: Any, slope: Any, distance: Any) -> Any:
    """scores[i] = scores[i] * scaling + slope * (distance + i) for a tile's scores, from `at` on.
    The distance is exact up to 2**24 positions.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = element_at(context, builder, signature.args[0], args[0], args[1])
        scaling, slope = splat(builder, args[2]), splat(builder, args[3])
        begin = splat(builder, builder.sitofp(args[4], FLOAT))
        for i in range(_VECTORS):
            place = builder.gep(data, [ir.Constant(args[1].type, i * LANES)])
            steps = ir.Constant(VECTOR, [float(i * LANES + lane) for lane in range(LANES)])
            far = builder.fmul(builder.fadd(begin, steps), slope)
            store(builder, vector_fma(builder, load(builder, place), scaling, far), place)
        return context.get_dummy_value()

    n, number = types.intp, types.float32
    return types.void(scores, n, number, number, n), generate


@compiled
def _change(
    layer: AttentionBlock, scratch: Any, row: int, at: int, start: int, scaling: Any
) -> Any:
    """Cap the scores of a query row of the item, or add its head's slope, as `Rules` says."""
    if layer.softcap > _ZERO:
        _cap(scratch.scores, at, scaling, layer.softcap)
        scaling = _ONE
    heads = layer.slopes.shape[0]
    if heads > 0:
        slope, position = layer.slopes[scratch.places[row] % heads], scratch.ends[row] - 1
        _slope(scratch.scores, at, scaling, slope, start - position)
        scaling = _ONE
    return scaling


@compiled
def _begin(scratch: Any, row: int, start: int) -> Any:
    return scratch.begins[row] - start


@compiled
def _no_begin(scratch: Any, row: int, start: int) -> Any:
    """For plain layers. In the first tile nothing is earlier, but there it makes no difference."""
    return -1


@compiled
def _no_change(
    layer: AttentionBlock, scratch: Any, row: int, at: int, start: int, scaling: Any
) -> Any:
    return scaling


PLAIN, SPECIAL = Rules(_no_begin, _no_change), Rules(_begin, _change)

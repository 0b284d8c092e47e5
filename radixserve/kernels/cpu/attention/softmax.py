"""The softmax of one tile in bfloat16, written as LLVM instructions for numba; see `vector` for the
rules. `amx` uses it.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from radixserve.kernels.cpu.compile import Intrinsic
from radixserve.kernels.cpu.vector import (
    HALF,
    LANES,
    LOG2_E,
    LOWEST,
    ROUND,
    VECTOR,
    BFloat,
    element_at,
    every,
    larger,
    load,
    power_of_two,
    reduced,
    splat,
    vector_fma,
    widened,
)

_SHORT = (0.055008931960449314, 0.24221096997568364, 0.6932829281413457, 1.0)


def _short_exp(builder: ir.IRBuilder, x: Any) -> Any:
    """`vector.exp` for results that are rounded to bfloat16: its relative error is below 1.1e-4, a
    thirtieth of what rounding may change. The polynomial is that of 2**rest, |rest| <= 1 / 2, which
    is nearest in that sense and 1 at 0.
    """
    x = builder.select(builder.fcmp_ordered("<", x, every(LOWEST)), every(LOWEST), x)
    shifted = vector_fma(builder, x, every(LOG2_E), every(ROUND))
    n = builder.fsub(shifted, every(ROUND))
    rest = vector_fma(builder, x, every(LOG2_E), builder.fneg(n))
    result = every(_SHORT[0])
    for coefficient in _SHORT[1:]:
        result = vector_fma(builder, result, rest, every(coefficient))
    return builder.fmul(result, power_of_two(builder, shifted))


def _before(builder: ir.IRBuilder, count: Any) -> Any:
    """A mask of the lanes before number `count`."""
    integers = ir.VectorType(ir.IntType(32), LANES)
    lanes = ir.Constant(integers, list(range(LANES)))
    limit = splat(builder, builder.trunc(count, ir.IntType(32)))
    return builder.icmp_signed("<", lanes, limit)


def _tile_shares(some: bool) -> Intrinsic:
    """Generates `tile_shares`; with `some`, positions from `seen` on get weight 0."""

    @intrinsic
    def shares_of(
        typingctx: Any, scores: Any, at: Any, seen: Any, scaling: Any, shares: Any, to: Any
    ) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            data = element_at(context, builder, signature.args[0], args[0], args[1])
            target = element_at(context, builder, signature.args[4], args[4], args[5])
            scale, index = splat(builder, args[3]), args[1].type
            vectors, masks = [], []
            for place in (ir.Constant(index, i * LANES) for i in range(4)):
                score = builder.fmul(load(builder, builder.gep(data, [place])), scale)
                masks.append(_before(builder, builder.sub(args[2], place)) if some else None)
                vectors.append(_kept(builder, masks[-1], score, float("-inf")))
            peak, sums = reduced(builder, larger, vectors), []
            for i, (mask, vector) in enumerate(zip(masks, vectors, strict=True)):
                power = _short_exp(builder, builder.fsub(vector, splat(builder, peak)))
                halves = _narrowed(builder, _kept(builder, mask, power, 0.0))
                into = builder.gep(target, [ir.Constant(index, i * LANES)])
                builder.store(halves, builder.bitcast(into, halves.type.as_pointer()), align=2)
                sums.append(widened(builder, halves))
            total = reduced(builder, lambda builder, a, b: builder.fadd(a, b), sums)
            return context.make_tuple(builder, signature.return_type, [peak, total])

        n, pair = types.intp, types.UniTuple(types.float32, 2)
        return pair(scores, n, n, types.float32, shares, n), generate

    return shares_of  # type: ignore[no-any-return]


tile_shares = _tile_shares(False)
"""Turn 64 scores, from `at` on, into bfloat16 weights, from `to` on, relative to the largest one.
Returns that score, scaled, and the sum of the weights as they were rounded.
"""
some_tile_shares = _tile_shares(True)
"""`tile_shares` of the first `seen` scores; the others get weight 0."""


def _kept(builder: ir.IRBuilder, mask: Any, vector: Any, other: float) -> Any:
    """The vector, with `other` where the mask is not set; all of it if there is no mask."""
    if mask is None:
        return vector
    return builder.select(mask, vector, ir.Constant(VECTOR, [other] * LANES))


def _narrowed(builder: ir.IRBuilder, floats: Any) -> Any:
    """Floats as bfloat16, rounded by the processor's own instruction. That is the rounding of
    `vector.put_number` except for the smallest floats, which it takes for zero.
    """
    halves = builder.fptrunc(floats, ir.VectorType(BFloat(), LANES))
    return builder.bitcast(halves, ir.VectorType(HALF, LANES))

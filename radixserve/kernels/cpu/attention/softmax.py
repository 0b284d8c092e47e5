"""The softmax of tiles, written as LLVM instructions for numba; see `vector` for the rules.

A tile gives each query row its largest score, its weights relative to that score, and their sum.
`add_scores` adds the scores and sums of several rows at once: one lane of a vector is a row.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from radixserve.kernels.cpu.attention.work import TILE
from radixserve.kernels.cpu.compile import Intrinsic, compiled
from radixserve.kernels.cpu.vector import (
    HALF,
    LANES,
    LOG2_E,
    LOWEST,
    ROUND,
    VECTOR,
    BFloat,
    added,
    element_at,
    every,
    larger,
    load,
    power_of_two,
    reduced,
    splat,
    store,
    vector_exp,
    vector_fma,
    widened,
)

_ONE = np.float32(1)
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


def _between(builder: ir.IRBuilder, begin: Any, end: Any, edges: int) -> Any:
    """A mask of the lanes [begin, end) if there are two edges, of those before `end` if there is
    one; None, for all lanes, if there is none.
    """
    if edges == 0:
        return None
    before = _before(builder, end)
    return builder.and_(before, builder.not_(_before(builder, begin))) if edges == 2 else before


def _tile_softmax(edges: int, bfloat16: bool) -> Intrinsic:
    """Generates `tile_weights` or, with `bfloat16`, `tile_shares`. `edges` says which positions are
    seen and get weights: 0 for all, 1 for those before `end`, 2 for those in [begin, end).
    """

    def write(builder: ir.IRBuilder, power: Any, target: Any) -> Any:
        """Write weights; returns them as they were rounded."""
        if not bfloat16:
            store(builder, power, target)
            return power
        halves = _narrowed(builder, power)
        builder.store(halves, builder.bitcast(target, halves.type.as_pointer()), align=2)
        return widened(builder, halves)

    power_of = _short_exp if bfloat16 else vector_exp

    @intrinsic
    def softmax(
        typingctx: Any,
        scores: Any,
        at: Any,
        begin: Any,
        end: Any,
        scaling: Any,
        weights: Any,
        to: Any,
    ) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            data = element_at(context, builder, signature.args[0], args[0], args[1])
            target = element_at(context, builder, signature.args[5], args[5], args[6])
            scale, index = splat(builder, args[4]), args[1].type
            vectors, masks = [], []
            for place in (ir.Constant(index, i * LANES) for i in range(4)):
                score = load(builder, builder.gep(data, [place]))
                score = builder.fmul(score, scale) if bfloat16 else score
                first, last = builder.sub(args[2], place), builder.sub(args[3], place)
                masks.append(_between(builder, first, last, edges))
                vectors.append(_kept(builder, masks[-1], score, float("-inf")))
            peak, sums = reduced(builder, larger, vectors), []
            for i, (mask, vector) in enumerate(zip(masks, vectors, strict=True)):
                power = power_of(builder, builder.fsub(vector, splat(builder, peak)))
                into = builder.gep(target, [ir.Constant(index, i * LANES)])
                sums.append(write(builder, _kept(builder, mask, power, 0.0), into))
            total = reduced(builder, added, sums)
            return context.make_tuple(builder, signature.return_type, [peak, total])

        n, pair = types.intp, types.UniTuple(types.float32, 2)
        return pair(scores, n, n, n, types.float32, weights, n), generate

    return softmax  # type: ignore[no-any-return]


_weights, _weights_before, _weights_between = (_tile_softmax(edges, False) for edges in range(3))
_shares, _shares_before, _shares_between = (_tile_softmax(edges, True) for edges in range(3))


@compiled
def tile_weights(scores: Any, at: int, begin: int, end: int) -> Any:
    """Turn scores [begin, end) of 64, from `at` on, into weights relative to the largest of them,
    in place; the others get weight 0. The bounds may lie outside the 64, but there is a score
    between them. Returns the largest score and the sum of the weights.
    """
    if begin > 0:
        return _weights_between(scores, at, begin, end, _ONE, scores, at)
    if end < TILE:
        return _weights_before(scores, at, 0, end, _ONE, scores, at)
    return _weights(scores, at, 0, TILE, _ONE, scores, at)


@compiled
def tile_shares(
    scores: Any, at: int, begin: int, end: int, scaling: Any, shares: Any, to: int
) -> Any:
    """As `tile_weights` of the scores times `scaling`, but the weights go to `shares`, from `to`
    on, and are rounded to bfloat16. The sum is that of the rounded ones.
    """
    if begin > 0:
        return _shares_between(scores, at, begin, end, scaling, shares, to)
    if end < TILE:
        return _shares_before(scores, at, 0, end, scaling, shares, to)
    return _shares(scores, at, 0, TILE, scaling, shares, to)


@intrinsic
def _add_lanes(
    typingctx: Any,
    peaks: Any,
    weights: Any,
    index: Any,
    count: Any,
    tile_peaks: Any,
    tile_sums: Any,
    old: Any,
    new: Any,
) -> Any:
    """`add_scores` for the first `count` lanes of a tile that is not the first."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kinds, none = signature.args, context.get_constant(types.intp, 0)
        into = [element_at(context, builder, kinds[i], args[i], args[2]) for i in (0, 1)]
        here = [element_at(context, builder, kinds[i], args[i], none) for i in range(4, 8)]
        before, total, peak, added = (load(builder, each) for each in (*into, *here[:2]))
        inside, one = _before(builder, args[3]), every(1.0)
        grows = builder.fcmp_ordered(">", peak, before)
        down, up = builder.fsub(before, peak), builder.fsub(peak, before)
        less = vector_exp(builder, builder.select(grows, down, up))
        factor = builder.select(grows, less, one)
        by = builder.select(grows, one, less)
        summed = vector_fma(builder, added, by, builder.fmul(total, factor))
        highest = builder.select(grows, peak, before)
        store(builder, builder.select(inside, highest, before), into[0])
        store(builder, builder.select(inside, summed, total), into[1])
        store(builder, factor, here[2])
        store(builder, by, here[3])
        return context.get_dummy_value()

    n = types.intp
    return types.void(peaks, weights, n, n, tile_peaks, tile_sums, old, new), generate


@compiled
def add_scores(sums: Any, index: int, count: int, scratch: Any, fresh: bool) -> None:
    """Add a tile's largest scores and sums of weights, `scratch.peaks` and `scratch.weights`, to
    rows [index, index + count) of `sums`, at most LANES rows, and write the factors for their sums
    of V to `scratch.old` and `scratch.new`. If `fresh`, the tile is the first of the sums.

    The factors of the old and the new sums are e to the difference of their largest scores for the
    smaller one and 1 for the larger. LANES entries of `sums` are read and written from `index` on.
    """
    if fresh:
        for r in range(count):
            sums.peaks[index + r], sums.weights[index + r] = scratch.peaks[r], scratch.weights[r]
    else:
        peaks, weights = scratch.peaks, scratch.weights
        _add_lanes(sums.peaks, sums.weights, index, count, peaks, weights, scratch.old, scratch.new)


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

"""The two loops of the gated delta rule over some columns of a matrix, as vectors: the sums of the
columns stay in registers while the rows are read.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from radixserve.kernels.cpu.compile import Intrinsic
from radixserve.kernels.cpu.vector import (
    LANES,
    element_at,
    every,
    load,
    splat,
    store,
    vector_fma,
)

_INDEX = types.intp


def _multiply(vectors: int) -> Intrinsic:
    """Generates: out[to + j] = sum over i < rows of factors[i] * matrix[at + i * stride + j], for
    `vectors` times LANES columns j. All arrays are float32.
    """

    @intrinsic
    def multiply(
        typingctx: Any,
        matrix: Any,
        at: Any,
        stride: Any,
        rows: Any,
        factors: Any,
        out: Any,
        to: Any,
    ) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            here = _Here(context, builder, signature, args)
            sums = [cgutils.alloca_once_value(builder, every(0.0)) for _ in range(vectors)]
            with cgutils.for_range(builder, args[3]) as loop:
                factor = here.number(4, loop.index)
                for lane, total in enumerate(sums):
                    number = load(builder, here.row(loop.index, lane))
                    builder.store(vector_fma(builder, number, factor, builder.load(total)), total)
            for lane, total in enumerate(sums):
                store(builder, builder.load(total), here.element(5, args[6], lane))
            return context.get_dummy_value()

        kinds = matrix, _INDEX, _INDEX, _INDEX, factors, out, _INDEX
        return types.void(*kinds), generate

    return multiply  # type: ignore[no-any-return]


def _update(vectors: int) -> Intrinsic:
    """Generates: row i < rows of the matrix becomes decay * row + keys[i] * deltas, and out[to + j]
    = sum over i of queries[i] * matrix[at + i * stride + j], for `vectors` times LANES columns j,
    whose deltas begin at element `to`. All arrays are float32.
    """

    @intrinsic
    def update(
        typingctx: Any,
        matrix: Any,
        at: Any,
        stride: Any,
        rows: Any,
        keys: Any,
        queries: Any,
        deltas: Any,
        decay: Any,
        out: Any,
        to: Any,
    ) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            here = _Here(context, builder, signature, args)
            factor = splat(builder, args[7])
            sums = [cgutils.alloca_once_value(builder, every(0.0)) for _ in range(vectors)]
            added = [load(builder, here.element(6, args[9], lane)) for lane in range(vectors)]
            with cgutils.for_range(builder, args[3]) as loop:
                key, query = here.number(4, loop.index), here.number(5, loop.index)
                for lane, total in enumerate(sums):
                    pointer = here.row(loop.index, lane)
                    kept = builder.fmul(load(builder, pointer), factor)
                    number = vector_fma(builder, key, added[lane], kept)
                    store(builder, number, pointer)
                    builder.store(vector_fma(builder, number, query, builder.load(total)), total)
            for lane, total in enumerate(sums):
                store(builder, builder.load(total), here.element(8, args[9], lane))
            return context.get_dummy_value()

        kinds = matrix, _INDEX, _INDEX, _INDEX, keys, queries, deltas, types.float32, out, _INDEX
        return types.void(*kinds), generate

    return update  # type: ignore[no-any-return]


class _Here:
    """Pointers into the arguments of a call, whose first three are the matrix, where it begins, and
    the distance of its rows.
    """

    def __init__(self, context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> None:
        self._context, self._builder = context, builder
        self._kinds, self._args = signature.args, args

    def element(self, argument: int, index: Any, lane: int) -> Any:
        """Pointer to the vector number `lane` from an element of an array on."""
        place = self._builder.add(index, ir.Constant(index.type, lane * LANES))
        kind, array = self._kinds[argument], self._args[argument]
        return element_at(self._context, self._builder, kind, array, place)

    def row(self, index: Any, lane: int) -> Any:
        """Pointer to the vector number `lane` of a row of the matrix."""
        first = self._builder.add(self._args[1], self._builder.mul(index, self._args[2]))
        return self.element(0, first, lane)

    def number(self, argument: int, index: Any) -> Any:
        """A number of an array in all lanes."""
        return splat(self._builder, self._builder.load(self.element(argument, index, 0)))


WIDE = 4
"""Vectors of columns that are computed at a time, where there are so many."""

multiply_wide, multiply_one = _multiply(WIDE), _multiply(1)
update_wide, update_one = _update(WIDE), _update(1)

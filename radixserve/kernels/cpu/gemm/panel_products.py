"""Products of up to six rows with a panel of a weight, written as LLVM instructions for numba.

A panel is 64 outputs: for each input a row of 64 floats, or for each pair of inputs a row of 64
words that hold two bfloat16, that of the first input in the lower half.

    float32 panel           input 0:   w[0,0]  w[1,0] ... w[63,0]          256 bytes
                            input 1:   w[0,1]  w[1,1] ... w[63,1]          256 bytes
    bfloat16 panel     inputs 0, 1:   w[0,0] w[0,1]  w[1,0] w[1,1] ...     256 bytes

Each output is one chain of fused multiply-adds, input after input, in ascending order. So the bits
depend neither on the number of rows nor on how many columns one loop computes: as many as fit into
the registers, all 64 with AVX-512, 16 at a time with AVX2.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from radixserve.kernels.cpu.compile import Intrinsic, compiled
from radixserve.kernels.cpu.products import add_pair_products, add_product, store_all, vectors_at
from radixserve.kernels.cpu.vector import (
    FIRST_LEVEL,
    LANES,
    LINE,
    VECTOR,
    element_at,
    prefetch_line,
)

WIDTH = 64
"""Outputs of a panel."""

MOST_ROWS = 6
"""Rows that one loop multiplies, as many as fit into the registers."""

_WORDS = ir.VectorType(ir.IntType(32), LANES)
_UPPER_HALF = 0xFFFF0000


class Operands(Enum):
    """What a loop multiplies. Sums are float32."""

    FLOATS = "float32 x, float32 panels"
    WIDENED = "float32 x, bfloat16 panels, made float32 on the way"
    PAIRS = "bfloat16 x, bfloat16 panels, by the processor's product of pairs"


def chains_of(
    builder: ir.IRBuilder, out: Any, rows: int, vectors: int = WIDTH // LANES
) -> tuple[list[Any], list[list[Any]]]:
    """Pointers to `rows` rows of 64 floats, and variables that hold the first floats of each as
    vectors.
    """
    outs = [builder.gep(out, [ir.Constant(ir.IntType(64), r * WIDTH)]) for r in range(rows)]
    rows_of = [vectors_at(builder, pointer, vectors) for pointer in outs]
    return outs, [[cgutils.alloca_once_value(builder, vector) for vector in row] for row in rows_of]


def _panel(rows: int, vectors: int, operands: Operands) -> Intrinsic:
    """Generates sums[r, columns] += x[r, inputs] @ weight[inputs, columns] for `rows` rows of x and
    `vectors` * LANES columns.

    x, weight and sums are flat arrays, each with the offset of its first element. `depth` counts
    rows of the weight, so with bfloat16 panels pairs of inputs. Rows of x are `stride` numbers
    apart, counted in pairs for PAIRS. Each row of the weight also prefetches the one `ahead` words
    further on.
    """

    @intrinsic
    def multiply(
        typingctx: Any,
        x: Any,
        at: Any,
        stride: Any,
        weight: Any,
        wt: Any,
        sums: Any,
        to: Any,
        depth: Any,
        ahead: Any,
    ) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kinds = signature.args
            x_data, weights, out = (
                element_at(context, builder, kinds[i], args[i], args[i + 1]) for i in (0, 3, 5)
            )
            stride, depth, ahead = args[2], args[7], args[8]
            index = depth.type
            outs, chains = chains_of(builder, out, rows, vectors)
            with cgutils.for_range(builder, depth) as loop:
                line = builder.gep(weights, [builder.mul(loop.index, ir.Constant(index, WIDTH))])
                for j in range(0, vectors * LANES, LINE):
                    further = builder.add(ahead, ir.Constant(index, j))
                    prefetch_line(builder, builder.gep(line, [further]), FIRST_LEVEL)
                columns = vectors_at(builder, line, vectors)
                for r in range(rows):
                    row = builder.gep(x_data, [builder.mul(ir.Constant(index, r), stride)])
                    _ADD[operands](builder, row, loop.index, columns, chains[r])
            for pointer, chain in zip(outs, chains, strict=True):
                store_all(builder, chain, pointer)
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, n, n, weight, n, sums, n, n, n), generate

    return multiply  # type: ignore[no-any-return]


def _add_floats(builder: ir.IRBuilder, row: Any, i: Any, columns: Any, sums: Any) -> None:
    """Add the products of input i."""
    add_product(builder, builder.gep(row, [i]), columns, sums)


def _add_widened(builder: ir.IRBuilder, row: Any, i: Any, columns: Any, sums: Any) -> None:
    """Add the products of inputs 2 * i and 2 * i + 1. The upper half of a float32 is a bfloat16."""
    words = [builder.bitcast(each, _WORDS) for each in columns]
    up, upper = (ir.Constant(_WORDS, [each] * LANES) for each in (16, _UPPER_HALF))
    first = [builder.bitcast(builder.shl(each, up), VECTOR) for each in words]
    second = [builder.bitcast(builder.and_(each, upper), VECTOR) for each in words]
    place = builder.gep(row, [builder.mul(i, ir.Constant(i.type, 2))])
    add_product(builder, place, first, sums)
    add_product(builder, builder.gep(place, [ir.Constant(i.type, 1)]), second, sums)


_ADD: dict[Operands, Callable[..., None]] = {
    Operands.FLOATS: _add_floats,
    Operands.WIDENED: _add_widened,
    Operands.PAIRS: add_pair_products,
}


def panel_product(operands: Operands, wide: bool) -> Any:
    """A function for compiled code: multiply(x, at, stride, rows, weight, wt, sums, to, depth,
    ahead), as `_panel` describes it, for any number of rows and all columns. `wide` is for
    processors with AVX-512.
    """
    vectors = WIDTH // LANES if wide else 1
    one, two, three, four, five, six = (
        _panel(rows, vectors, operands) for rows in range(1, MOST_ROWS + 1)
    )
    columns = vectors * LANES

    @compiled
    def multiply(
        x: Any,
        at: int,
        stride: int,
        rows: int,
        weight: Any,
        wt: int,
        sums: Any,
        to: int,
        depth: int,
        ahead: int,
    ) -> None:
        for row in range(0, rows, MOST_ROWS):
            left, here = rows - row, at + row * stride
            for column in range(0, WIDTH, columns):
                begin, end = wt + column, to + row * WIDTH + column
                if left >= 6:
                    six(x, here, stride, weight, begin, sums, end, depth, ahead)
                elif left == 5:
                    five(x, here, stride, weight, begin, sums, end, depth, ahead)
                elif left == 4:
                    four(x, here, stride, weight, begin, sums, end, depth, ahead)
                elif left == 3:
                    three(x, here, stride, weight, begin, sums, end, depth, ahead)
                elif left == 2:
                    two(x, here, stride, weight, begin, sums, end, depth, ahead)
                else:
                    one(x, here, stride, weight, begin, sums, end, depth, ahead)
            ahead = 0  # prefetched once; the other rows "prefetch" what they are reading

    return multiply

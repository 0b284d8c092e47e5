"""Attention in bfloat16 with the processor's products of pairs (AVX512-BF16). Unlike `amx`, which
always multiplies 16 query rows, it multiplies only the rows that there are.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from radixserve.kernels.cpu.attention.bfloat16 import TileScratch, means_of
from radixserve.kernels.cpu.attention.block import AttentionBlock
from radixserve.kernels.cpu.attention.kernel import attend
from radixserve.kernels.cpu.attention.work import TILE
from radixserve.kernels.cpu.compile import Intrinsic, compiled
from radixserve.kernels.cpu.products import (
    Fold,
    add_pair_products,
    fold_sums,
    store_all,
    vectors_at,
    zero_sums,
)
from radixserve.kernels.cpu.vector import FLOAT, LANES, element_at

_BLOCK = 4 * LANES  # columns of a loop
_TAIL = 2 * LANES  # of the last loop, where the width is no multiple of _BLOCK


def _multiply_rows(rows: int, columns: int) -> Intrinsic:
    """Generates c[r, 0:columns] = sum over k of a[r, 2k] * b[k, :].low + a[r, 2k + 1] * b[k,
    :].high for `rows` rows, k ascending, folded into c as `fold` (a `Fold`) says.

    a is flat bfloat16; b is flat words of two bfloat16, low and high; c is flat float32. Each comes
    with the offset of its first element and its row stride; the stride of a counts pairs. `depth`
    is the number of pairs in a row of a, which is the number of rows of b.
    """

    @intrinsic
    def multiply(
        typingctx: Any,
        a: Any,
        at: Any,
        lda: Any,
        b: Any,
        bt: Any,
        ldb: Any,
        depth: Any,
        c: Any,
        ct: Any,
        ldc: Any,
        fold: Any,
    ) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kinds, index = signature.args, args[6].type
            pairs, words, out = (
                element_at(context, builder, kinds[i], args[i], args[i + 1]) for i in (0, 3, 7)
            )
            pairs = builder.bitcast(pairs, FLOAT.as_pointer())
            words = builder.bitcast(words, FLOAT.as_pointer())

            def row_of(pointer: Any, r: int, stride: Any) -> Any:
                return builder.gep(pointer, [builder.mul(ir.Constant(index, r), stride)])

            sums = [zero_sums(builder, columns // LANES) for _ in range(rows)]
            with cgutils.for_range(builder, args[6]) as loop:
                line = builder.gep(words, [builder.mul(loop.index, args[5])])
                factors = vectors_at(builder, line, columns // LANES)
                for r in range(rows):
                    row = row_of(pairs, r, args[2])
                    add_pair_products(builder, row, loop.index, factors, sums[r])
            targets = [row_of(out, r, args[9]) for r in range(rows)]
            fold_sums(context, builder, kinds[10], args[10], sums, targets)
            for total, target in zip(sums, targets, strict=True):
                store_all(builder, total, target)
            return context.get_dummy_value()

        n = types.intp
        return types.void(a, n, n, b, n, n, n, c, n, n, fold), generate

    return multiply  # type: ignore[no-any-return]


def _any_rows(columns: int) -> Any:
    """A function for compiled code: as `_multiply_rows`, for any number of rows."""
    one, two, three, four, six = (_multiply_rows(rows, columns) for rows in (1, 2, 3, 4, 6))

    @compiled
    def multiply(
        rows: int,
        a: Any,
        at: int,
        lda: int,
        b: Any,
        bt: int,
        ldb: int,
        depth: int,
        c: Any,
        ct: int,
        ldc: int,
        fold: Fold,
    ) -> None:
        done = 0
        while done < rows:
            left, here, to = rows - done, at + 2 * done * lda, ct + done * ldc
            part = Fold(fold.old, fold.new, fold.first + done, fold.active)
            if left >= 6:
                six(a, here, lda, b, bt, ldb, depth, c, to, ldc, part)
                done += 6
            elif left >= 4:
                four(a, here, lda, b, bt, ldb, depth, c, to, ldc, part)
                done += 4
            elif left == 3:
                three(a, here, lda, b, bt, ldb, depth, c, to, ldc, part)
                done += 3
            elif left == 2:
                two(a, here, lda, b, bt, ldb, depth, c, to, ldc, part)
                done += 2
            else:
                one(a, here, lda, b, bt, ldb, depth, c, to, ldc, part)
                done += 1

    return multiply


_multiply_block, _multiply_tail = _any_rows(_BLOCK), _any_rows(_TAIL)


@compiled
def _multiply_queries(scratch: TileScratch, first: int, count: int) -> None:
    """As `bfloat16.means_of` says."""
    depth = scratch.keys.shape[0] // TILE
    a, at, b, c = scratch.queries, first * 2 * depth, scratch.keys, scratch.scores
    none = Fold(scratch.old, scratch.new, 0, 0)
    _multiply_block(count, a, at, depth, b, 0, TILE, depth, c, 0, TILE, none)


@compiled
def _add_values(scratch: TileScratch, first: int, count: int, fresh: bool) -> None:
    """As `bfloat16.means_of` says."""
    depth, a, b, c = TILE // 2, scratch.shares, scratch.values, scratch.sums.values
    width = b.shape[0] // depth
    fold = Fold(scratch.old, scratch.new, 0, 0 if fresh else 1)
    for column in range(0, width, _BLOCK):
        to = first * width + column
        if width - column >= _BLOCK:
            _multiply_block(count, a, 0, depth, b, column, width, depth, c, to, width, fold)
        else:
            _multiply_tail(count, a, 0, depth, b, column, width, depth, c, to, width, fold)


_PAIRS = means_of(_multiply_queries, _add_values, special=False)
_SPECIAL_PAIRS = means_of(_multiply_queries, _add_values, special=True)


def work(address: Any) -> None:
    """The kernel for activations and K/V in bfloat16, for processors with AVX512-BF16. It is called
    as those of `kernel.work_of` are.
    """
    attend(_PAIRS, AttentionBlock.read_bfloat16(address))


def special_work(address: Any) -> None:
    """`work` for layers that are not plain."""
    attend(_SPECIAL_PAIRS, AttentionBlock.read_bfloat16(address))

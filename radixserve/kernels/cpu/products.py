"""Products of a few rows with many, the loops in which the time is spent, written as LLVM
instructions for numba.

As in `vector`, every number is defined: each output is one chain of fused multiply-adds, in
ascending order. Each loop also prefetches memory that is read after it, a few cache lines per
iteration: a processor has few prefetches under way at once, and would wait for more.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from radixserve.kernels.cpu.compile import LINE_BYTES, Intrinsic
from radixserve.kernels.cpu.vector import (
    LANES,
    VECTOR,
    BFloat,
    element_at,
    load,
    prefetch_line,
    splat,
    store,
    vector_fma,
)

_PAIRS = ir.VectorType(BFloat(), 2 * LANES)
_DOT = ir.FunctionType(VECTOR, [VECTOR, _PAIRS, _PAIRS])


class Rows(NamedTuple):
    """Rows that a table of slots finds: row k is data[begin + table[first + k] * stride
    :][:width].
    """

    data: Any  # flat float32; rows that are prefetched only may be bfloat16
    table: Any  # int32
    first: Any  # index in the table of row 0
    count: Any  # number of rows
    begin: Any  # in numbers, as stride and width
    stride: Any
    width: Any


class Fold(NamedTuple):
    """How a product is written to c. If `active`, c[r] = c[r] * old[first + r] + product *
    new[first + r]; otherwise c[r] = product.
    """

    old: Any  # flat float32
    new: Any  # flat float32
    first: Any  # index of row 0 in both
    active: Any  # 0 or 1


def panel_of(wide: bool) -> int:
    """Columns that `multiply_rows` computes at a time: as many as fit into registers for six rows.
    `wide` is for processors with AVX-512.
    """
    return LANES * (2 if wide else 1)


def multiply_rows(rows: int, wide: bool) -> Intrinsic:
    """Generates c[r, 0:n] = sum over k of a[r, k] * b[k, column : column + n] for `rows` rows, k
    ascending, where n is `panel_of(wide)`.

    a and c are flat float32 arrays, each with the offset of its first element and its row stride; b
    is `Rows`. `later` is `Rows` too: its row k is prefetched in iteration k. `fold` is `Fold`.
    """

    vectors = panel_of(wide) // LANES

    @intrinsic
    def multiply(
        typingctx: Any,
        a: Any,
        at: Any,
        lda: Any,
        b: Any,
        column: Any,
        c: Any,
        ct: Any,
        ldc: Any,
        fold: Any,
        later: Any,
    ) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kinds = signature.args
            a_data, c_data = (
                element_at(context, builder, kinds[i], args[i], args[i + 1]) for i in (0, 5)
            )
            row_of_b, depth = _rows(context, builder, kinds[3], args[3])
            row_of_later, num_later = _rows(context, builder, kinds[9], args[9])
            width = builder.extract_value(args[9], Rows._fields.index("width"))
            lda, column, ldc = args[2], args[4], args[7]
            index = depth.type
            sums = [zero_sums(builder, vectors) for _ in range(rows)]
            with cgutils.for_range(builder, depth) as loop:
                with builder.if_then(builder.icmp_signed("<", loop.index, num_later)):
                    _prefetch_row(builder, row_of_later(loop.index), width)
                row = builder.gep(row_of_b(loop.index), [column])
                columns = vectors_at(builder, row, vectors)
                for r in range(rows):
                    element = builder.add(builder.mul(ir.Constant(index, r), lda), loop.index)
                    add_product(builder, builder.gep(a_data, [element]), columns, sums[r])
            targets = [
                builder.gep(c_data, [builder.mul(ir.Constant(index, r), ldc)]) for r in range(rows)
            ]
            fold_sums(context, builder, kinds[8], args[8], sums, targets)
            for total, target in zip(sums, targets, strict=True):
                store_all(builder, total, target)
            return context.get_dummy_value()

        n = types.intp
        return types.void(a, n, n, b, n, c, n, n, fold, later), generate

    return multiply  # type: ignore[no-any-return]


def _rows(context: Any, builder: ir.IRBuilder, kind: Any, rows: Any) -> Any:
    """A function that gives the pointer to row k of `Rows`, and the number of rows."""
    fields = {name: builder.extract_value(rows, i) for i, name in enumerate(Rows._fields)}
    data = element_at(context, builder, kind[0], fields["data"], fields["begin"])
    table = element_at(context, builder, kind[1], fields["table"], fields["first"])

    def row(k: Any) -> Any:
        place = builder.sext(builder.load(builder.gep(table, [k])), k.type)
        return builder.gep(data, [builder.mul(place, fields["stride"])])

    return row, fields["count"]


def _prefetch_row(builder: ir.IRBuilder, row: Any, width: Any) -> None:
    """Prefetch `width` numbers, float32 or bfloat16, from a pointer on."""
    size = 2 if row.type.pointee == ir.IntType(16) else 4
    nothing, line = ir.Constant(width.type, 0), ir.Constant(width.type, LINE_BYTES // size)
    with cgutils.for_range_slice(builder, nothing, width, line) as (offset, _):
        prefetch_line(builder, builder.gep(row, [offset]))


def fold_sums(
    context: Any, builder: ir.IRBuilder, kind: Any, fold: Any, sums: list[Any], targets: list[Any]
) -> None:
    """If `fold` is active: sums = targets * old + sums * new, row by row, in the variables
    `sums`.
    """
    active = builder.extract_value(fold, Fold._fields.index("active"))
    with builder.if_then(builder.icmp_signed("!=", active, ir.Constant(active.type, 0))):
        _fold(context, builder, kind, fold, sums, targets)


def _fold(
    context: Any, builder: ir.IRBuilder, kind: Any, fold: Any, sums: list[Any], targets: list[Any]
) -> None:
    first = builder.extract_value(fold, Fold._fields.index("first"))
    arrays = [
        element_at(context, builder, kind[i], builder.extract_value(fold, i), first)
        for i in range(2)
    ]
    for r, (total, target) in enumerate(zip(sums, targets, strict=True)):
        place = ir.Constant(first.type, r)
        old, new = (splat(builder, builder.load(builder.gep(array, [place]))) for array in arrays)
        for variable, before in zip(total, vectors_at(builder, target, len(total)), strict=True):
            scaled = builder.fmul(before, old)
            builder.store(vector_fma(builder, builder.load(variable), new, scaled), variable)


def zero_sums(builder: ir.IRBuilder, vectors: int) -> list[Any]:
    """Variables that hold vectors of zeros."""
    zero = ir.Constant(VECTOR, [0.0] * LANES)
    return [cgutils.alloca_once_value(builder, zero) for _ in range(vectors)]


def vectors_at(builder: ir.IRBuilder, pointer: Any, count: int) -> list[Any]:
    """Load `count` vectors of LANES floats from a pointer on."""
    return [
        load(builder, builder.gep(pointer, [ir.Constant(ir.IntType(64), v * LANES)]))
        for v in range(count)
    ]


def add_product(builder: ir.IRBuilder, factor: Any, columns: list[Any], sums: list[Any]) -> None:
    """sums += factor * columns, where `factor` points to a number and `sums` are variables."""
    vector = splat(builder, builder.load(factor))
    for column, total in zip(columns, sums, strict=True):
        builder.store(vector_fma(builder, vector, column, builder.load(total)), total)


def add_pair_products(
    builder: ir.IRBuilder, row: Any, i: Any, columns: list[Any], sums: list[Any]
) -> None:
    """sums += products of pair `i` of bfloat16 with `columns`, words of two bfloat16, by the
    processor's product of pairs. `row` points to floats that are pairs in truth.
    """
    pair = builder.bitcast(splat(builder, builder.load(builder.gep(row, [i]))), _PAIRS)
    dot = cgutils.get_or_insert_function(builder.module, _DOT, "llvm.x86.avx512bf16.dpbf16ps.512")
    for column, total in zip(columns, sums, strict=True):
        product = [builder.load(total), pair, builder.bitcast(column, _PAIRS)]
        builder.store(builder.call(dot, product), total)


def store_all(builder: ir.IRBuilder, sums: list[Any], pointer: Any) -> None:
    """Write variables that hold vectors, one behind the other, from a pointer on."""
    store_row(builder, [builder.load(total) for total in sums], pointer)


def store_row(builder: ir.IRBuilder, vectors: list[Any], pointer: Any) -> None:
    """Write vectors, one behind the other, from a pointer on."""
    for v, vector in enumerate(vectors):
        store(builder, vector, builder.gep(pointer, [ir.Constant(ir.IntType(64), v * LANES)]))

"""Transposes keys on their way from a pool, written as LLVM instructions for numba: one row of
numbers for each slot becomes one row for each dimension, so that scores of many positions are
computed side by side.

Numbers of less than 32 bits move as words that hold several of them. Knows nothing of heads and
tiles.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from radixserve.kernels.cpu.one_byte import is_one_byte, widened_words
from radixserve.kernels.cpu.vector import (
    FLOAT,
    LANES,
    VECTOR,
    each_lane,
    element_at,
    mask_of,
    store,
)

_QUARTER = 4  # floats of 128 bits


@intrinsic
def transpose(
    typingctx: Any,
    source: Any,
    at: Any,
    stride: Any,
    slots: Any,
    st: Any,
    target: Any,
    tt: Any,
    ld: Any,
) -> Any:
    """target[d, j] = source[at + slots[st + j] * stride + d] as float32, for j below LANES and d
    below `transposed_dims`: one row per slot becomes one row per dimension. `ld` is the row stride
    of target.

    bfloat16 is transposed as words of 32 bits, of two dimensions each, that are taken apart then;
    so are numbers of one byte, in words of four, and their scale is not applied.
    If target is uint32, words stay whole: row d of it holds dimensions 2 * d and 2 * d + 1.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kinds = signature.args
        source = element_at(context, builder, kinds[0], args[0], args[1])
        slots = element_at(context, builder, kinds[3], args[3], args[4])
        target = element_at(context, builder, kinds[5], args[5], args[6])
        columns = _columns(builder, _rows_of_slots(builder, source, args[2], slots))
        if target.type.pointee != FLOAT:
            target = builder.bitcast(target, FLOAT.as_pointer())
        elif is_one_byte(kinds[0].dtype):
            apart = [_bytes(builder, kinds[0].dtype, column) for column in columns]
            columns = [each for column in apart for each in column]
        elif source.type.pointee != FLOAT:
            columns = [half for column in columns for half in _halves(builder, column)]
        for d, column in enumerate(columns):
            offset = builder.mul(ir.Constant(args[7].type, d), args[7])
            store(builder, column, builder.gep(target, [offset]))
        return context.get_dummy_value()

    n = types.intp
    return types.void(source, n, n, slots, n, target, n, n), generate


@intrinsic
def transposed_dims(typingctx: Any, source: Any) -> Any:
    """How many dimensions `transpose` takes at a time from an array of this type."""
    count = LANES * 4 * 8 // source.dtype.bitwidth

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return context.get_constant(types.intp, count)

    return types.intp(source), generate


def _rows_of_slots(builder: ir.IRBuilder, source: Any, stride: Any, slots: Any) -> list[Any]:
    """Pointers to the rows of LANES slots, of which the first lies at the pointer `slots`."""
    rows = []
    for j in range(LANES):
        place = builder.gep(slots, [ir.Constant(stride.type, j)])
        slot = builder.sext(builder.load(place), stride.type)
        row = builder.gep(source, [builder.mul(slot, stride)])
        rows.append(builder.bitcast(row, FLOAT.as_pointer()))
    return rows


def _halves(builder: ir.IRBuilder, words: Any) -> list[Any]:
    """Two vectors of floats from words of two bfloat16 each: the first of all, the second of
    all.
    """
    integers = ir.VectorType(ir.IntType(32), LANES)
    bits = builder.bitcast(words, integers)
    first = builder.shl(bits, each_lane(integers, 16))
    second = builder.and_(bits, each_lane(integers, 0xFFFF0000))
    return [builder.bitcast(half, VECTOR) for half in (first, second)]


def _bytes(builder: ir.IRBuilder, kind: Any, words: Any) -> list[Any]:
    """Four vectors of floats from words of four numbers of one byte: the first of all, and so
    on.
    """
    integers = ir.VectorType(ir.IntType(32), LANES)
    bits = builder.bitcast(words, integers)
    return [
        widened_words(builder, kind, builder.lshr(bits, each_lane(integers, 8 * i)))
        for i in range(4)
    ]


def _columns(builder: ir.IRBuilder, rows: list[Any]) -> list[Any]:
    """The columns of a square of LANES x LANES floats whose rows begin at these pointers.

    It makes four columns at a time. From each row it loads four floats, and puts those of rows r, r
    + 4, r + 8, ... into one vector; then pairs of these four vectors are interleaved twice.
    Processors move floats within 128 bits at less cost than across them.
    """
    columns = []
    for first in range(0, LANES, _QUARTER):
        parts = [
            _behind_each_other(builder, [_quarter(builder, row, first) for row in rows[r::4]])
            for r in range(4)
        ]
        low, high = (_interleaved(builder, a, b, 1) for a, b in (parts[:2], parts[2:]))
        for a, b in zip(low, high, strict=True):
            columns += _interleaved(builder, a, b, 2)
    return columns


def _quarter(builder: ir.IRBuilder, row: Any, at: int) -> Any:
    """128 bits (four floats) of a row, from float `at` on."""
    place = builder.gep(row, [ir.Constant(ir.IntType(64), at)])
    return builder.load(
        builder.bitcast(place, ir.VectorType(FLOAT, _QUARTER).as_pointer()), align=1
    )


def _behind_each_other(builder: ir.IRBuilder, vectors: list[Any]) -> Any:
    """Vectors of equal length, as many as a power of two, concatenated."""
    while len(vectors) > 1:
        mask = mask_of(list(range(2 * vectors[0].type.count)))
        vectors = [
            builder.shuffle_vector(*vectors[i : i + 2], mask) for i in range(0, len(vectors), 2)
        ]
    return vectors[0]


def _interleaved(builder: ir.IRBuilder, a: Any, b: Any, size: int) -> list[Any]:
    """Pieces of `size` floats of a and b in turns: one vector from the lower halves of all
    quarters, one from the upper halves.
    """
    masks: list[list[int]] = [[], []]
    for quarter in range(0, LANES, _QUARTER):
        for half, mask in enumerate(masks):
            for piece in range(quarter + 2 * half, quarter + 2 * half + 2, size):
                mask += [*range(piece, piece + size), *range(LANES + piece, LANES + piece + size)]
    return [builder.shuffle_vector(a, b, mask_of(mask)) for mask in masks]

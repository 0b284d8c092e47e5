"""Vector building blocks for the CPU kernels, written as LLVM instructions for numba.

Every number is defined by IEEE 754: fused multiply-adds are called by name and nothing may be
reassociated, so a result does not depend on which of these blocks computed it, how a loop was
vectorised or which processor ran it. Knows nothing of the kernels that use it.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from radixserve.kernels.cpu.one_byte import code_of, is_one_byte, widened_byte

LANES = 16  # floats of a vector
FLOAT = ir.FloatType()
HALF = ir.IntType(16)  # bfloat16 in compiled code


class BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's own type for bfloat16, which llvmlite does not have."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


VECTOR = ir.VectorType(FLOAT, LANES)

LINE = 16
"""Floats of a cache line."""

FIRST_LEVEL, SECOND_LEVEL = 3, 2
"""The caches to which lines are prefetched, as LLVM numbers them."""

_FMA = ir.FunctionType(VECTOR, [VECTOR] * 3)


def element_at(context: Any, builder: ir.IRBuilder, kind: Any, array: Any, offset: Any) -> Any:
    """Pointer to element `offset` (counted in elements) of a contiguous array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])


def load(builder: ir.IRBuilder, pointer: Any) -> Any:
    """LANES floats from a pointer on, at any address."""
    return builder.load(builder.bitcast(pointer, VECTOR.as_pointer()), align=4)


def store(builder: ir.IRBuilder, value: Any, pointer: Any) -> None:
    """Write LANES floats from a pointer on, at any address."""
    builder.store(value, builder.bitcast(pointer, VECTOR.as_pointer()), align=4)


def load_numbers(builder: ir.IRBuilder, pointer: Any) -> Any:
    """LANES numbers from a pointer to float32 or bfloat16 (uint16) on, as floats."""
    if pointer.type.pointee == FLOAT:
        return load(builder, pointer)
    halves = ir.VectorType(HALF, LANES)
    return widened(builder, builder.load(builder.bitcast(pointer, halves.as_pointer()), align=2))


def store_numbers(builder: ir.IRBuilder, value: Any, pointer: Any) -> None:
    """Write LANES floats from a pointer to float32 or bfloat16 (uint16) on."""
    if pointer.type.pointee == FLOAT:
        store(builder, value, pointer)
    else:
        halves = _rounded(builder, value)
        builder.store(halves, builder.bitcast(pointer, halves.type.as_pointer()), align=2)


def widened(builder: ir.IRBuilder, halves: Any) -> Any:
    """bfloat16 as float32, exactly: the 16 bits are the upper half of the float. It takes a number
    or a vector.
    """
    words = _like(halves.type, ir.IntType(32))
    upper = builder.shl(builder.zext(halves, words), each_lane(words, 16))
    return builder.bitcast(upper, _like(halves.type, FLOAT))


def _rounded(builder: ir.IRBuilder, floats: Any) -> Any:
    """float32 as bfloat16, rounded to the nearest, ties to even; NaN stays NaN. It takes a number
    or a vector.

    Adding just under half of the last place that stays, and one more if that place is odd, carries
    into it exactly when the float is nearer to the larger neighbour, or as near and the smaller
    neighbour is odd:

        1.00390625 = 0x3f808000   + 0x7fff + 0 = 0x3f80ffff -> 0x3f80 = 1.0
        1.01171875 = 0x3f818000   + 0x7fff + 1 = 0x3f820000 -> 0x3f82 = 1.015625

    The processor's own instruction is not used: it takes the smallest floats for zero.
    """
    words = _like(floats.type, ir.IntType(32))
    bits = builder.bitcast(floats, words)
    odd = builder.and_(builder.lshr(bits, each_lane(words, 16)), each_lane(words, 1))
    carried = builder.add(bits, builder.add(odd, each_lane(words, 0x7FFF)))
    sane = builder.fcmp_ordered("ord", floats, floats)
    kept = builder.select(sane, carried, builder.or_(bits, each_lane(words, 0x400000)))
    return builder.trunc(builder.lshr(kept, each_lane(words, 16)), _like(floats.type, HALF))


def _like(kind: Any, element: Any) -> Any:
    """The type of `element`, or a vector of as many of them as the type `kind` has."""
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def each_lane(kind: Any, value: int) -> ir.Constant:
    """A constant of an integer type, or of a vector of integers."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


@intrinsic
def number_at(typingctx: Any, array: Any, index: Any) -> Any:
    """array[index] as a float32. The array is float32, bfloat16 (uint16), or of one byte, then the
    scale is not applied.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        value = builder.load(element_at(context, builder, signature.args[0], args[0], args[1]))
        if is_one_byte(array.dtype):
            return widened_byte(builder, array.dtype, value)
        return value if value.type == FLOAT else widened(builder, value)

    return types.float32(array, types.intp), generate


@intrinsic
def put_number(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index] = value, a float32. The array is float32, bfloat16 (uint16) or of one byte; the
    value is rounded to that. A value for one byte must be within its range.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = element_at(context, builder, signature.args[0], args[0], args[1])
        if is_one_byte(array.dtype):
            builder.store(code_of(builder, array.dtype, args[2]), pointer)
            return context.get_dummy_value()
        whole = pointer.type.pointee == FLOAT
        builder.store(args[2] if whole else _rounded(builder, args[2]), pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32), generate


def vector_fma(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    """a * b + c of vectors, rounded once."""
    operator = cgutils.get_or_insert_function(builder.module, _FMA, f"llvm.fma.v{LANES}f32")
    return builder.call(operator, [a, b, c])


def splat(builder: ir.IRBuilder, scalar: Any) -> Any:
    """A vector that holds one number in every lane."""
    kind = ir.VectorType(scalar.type, LANES)
    vector = builder.insert_element(
        ir.Constant(kind, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
    )
    return builder.shuffle_vector(vector, vector, mask_of([0] * LANES))


def mask_of(indices: list[int]) -> ir.Constant:
    """The indices of a shuffle of vectors."""
    return ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), indices)


def prefetch_line(builder: ir.IRBuilder, pointer: Any, level: int = SECOND_LEVEL) -> None:
    """Prefetch the cache line at `pointer`, which may be any address, without waiting for it. Not
    to the first-level cache by default, because a tile of K and V fills that.
    """
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    operator = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    flags = [ir.Constant(number, n) for n in (0, level, 1)]  # to read; data
    builder.call(operator, [builder.bitcast(pointer, byte), *flags])


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), generate


LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.693359375  # few bits: n * high is exact
_LN2_LOW = -2.12194440e-4
ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest integer in the low bits
LOWEST = -87.0
_TAYLOR = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)


def vector_exp(builder: ir.IRBuilder, x: Any) -> Any:
    """e**x for a vector x <= 0: 2**n times a polynomial of the rest, |rest| <= ln(2) / 2."""
    x = builder.select(builder.fcmp_ordered("<", x, every(LOWEST)), every(LOWEST), x)
    shifted = vector_fma(builder, x, every(LOG2_E), every(ROUND))
    n = builder.fsub(shifted, every(ROUND))
    rest = vector_fma(builder, n, every(-_LN2_HIGH), x)
    rest = vector_fma(builder, n, every(-_LN2_LOW), rest)
    result = every(_TAYLOR[0])
    for coefficient in _TAYLOR[1:]:
        result = vector_fma(builder, result, rest, every(coefficient))
    return builder.fmul(result, power_of_two(builder, shifted))


_NEAR = 0.5  # below it, 1 - e**(-2x) would lose bits
_ODD = (-0.006645598448812962, 0.021296676248311996, -0.05389886349439621, 0.1333296149969101)
_THIRD = -0.33333325386047363


def vector_tanh(builder: ir.IRBuilder, x: Any) -> Any:
    """tanh of a vector, within 3 units in the last place: a polynomial where |x| < 1 / 2, else by
    powers of e, (1 - t) / (1 + t) with t = e**(-2 |x|). NaN stays NaN.
    """
    size = _without_sign(builder, x)
    square = builder.fmul(size, size)
    rest = every(_ODD[0])
    for coefficient in (*_ODD[1:], _THIRD):
        rest = vector_fma(builder, rest, square, every(coefficient))
    near = vector_fma(builder, builder.fmul(size, square), rest, size)
    power = vector_exp(builder, builder.fmul(size, every(-2.0)))
    one = every(1.0)
    far = builder.fdiv(builder.fsub(one, power), builder.fadd(one, power))
    result = builder.select(builder.fcmp_ordered("<", size, every(_NEAR)), near, far)
    negative = builder.fcmp_ordered("<", x, every(0.0))
    return builder.select(negative, builder.fneg(result), result)


def _without_sign(builder: ir.IRBuilder, x: Any) -> Any:
    """The absolute values of a vector."""
    integers = ir.VectorType(ir.IntType(32), LANES)
    bits = builder.and_(builder.bitcast(x, integers), each_lane(integers, 0x7FFFFFFF))
    return builder.bitcast(bits, VECTOR)


def every(value: float) -> ir.Constant:
    """A vector that holds one float in every lane."""
    return ir.Constant(VECTOR, [ir.Constant(FLOAT, float(np.float32(value)))] * LANES)


def power_of_two(builder: ir.IRBuilder, shifted: Any) -> Any:
    """2**n, where `shifted` is n + ROUND: n + 127 goes into the bits of the exponent."""
    integers = ir.VectorType(ir.IntType(32), LANES)
    biased = builder.add(builder.bitcast(shifted, integers), each_lane(integers, 127))
    return builder.bitcast(builder.shl(biased, each_lane(integers, 23)), VECTOR)


@intrinsic
def exp(typingctx: Any, x: Any) -> Any:
    """e**x for x <= 0, within 2 units in the last place. Below -87 the result is that at -87;
    exp(0) is 1 and NaN stays NaN.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.extract_element(
            vector_exp(builder, splat(builder, args[0])), ir.Constant(ir.IntType(32), 0)
        )

    return types.float32(types.float32), generate


@intrinsic
def tile_exp(typingctx: Any, array: Any, at: Any, peak: Any) -> Any:
    """array[i] = exp(array[i] - peak) for 4 * LANES elements from `at` on."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data, peak = (
            element_at(context, builder, signature.args[0], args[0], args[1]),
            splat(builder, args[2]),
        )
        for i in range(4):
            pointer = builder.gep(data, [ir.Constant(args[1].type, i * LANES)])
            store(builder, vector_exp(builder, builder.fsub(load(builder, pointer), peak)), pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32), generate


@intrinsic
def copy(typingctx: Any, source: Any, at: Any, target: Any, to: Any, count: Any) -> Any:
    """target[to : to + count] = source[at : at + count], arrays of one type that do not overlap."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kinds = signature.args
        source = element_at(context, builder, kinds[0], args[0], args[1])
        target = element_at(context, builder, kinds[2], args[2], args[3])
        assert kinds[0].dtype == kinds[2].dtype, "bits are copied, not converted"
        size = context.get_abi_sizeof(source.type.pointee)
        cgutils.raw_memcpy(builder, target, source, args[4], size)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp, types.intp), generate


@intrinsic
def scale_lanes(typingctx: Any, array: Any, at: Any, scales: Any) -> Any:
    """array[at + i] *= scales[i] for LANES floats."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kinds, none = signature.args, context.get_constant(types.intp, 0)
        place = element_at(context, builder, kinds[0], args[0], args[1])
        by = load(builder, element_at(context, builder, kinds[2], args[2], none))
        store(builder, builder.fmul(load(builder, place), by), place)
        return context.get_dummy_value()

    return types.void(array, types.intp, scales), generate


@intrinsic
def add_atomically(typingctx: Any, counters: Any, index: Any, value: Any) -> Any:
    """counters[index] += value (int64), atomically among threads. Returns the value before."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw(
            "add",
            element_at(context, builder, signature.args[0], args[0], args[1]),
            args[2],
            "acq_rel",
        )

    return types.int64(counters, types.int64, types.int64), generate


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Prefetch the cache line of array[index]; the index may lie outside the array."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        prefetch_line(builder, element_at(context, builder, signature.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def reduced(
    builder: ir.IRBuilder, combine: Callable[[ir.IRBuilder, Any, Any], Any], parts: list[Any]
) -> Any:
    """Four vectors combined to one number, always in the same order: vector by vector, then the
    upper half of the vector onto the lower one until one number is left.
    """
    first, second = combine(builder, *parts[:2]), combine(builder, *parts[2:])
    vector, width = combine(builder, first, second), LANES // 2
    while width:
        mask = mask_of([(i + width) % LANES for i in range(LANES)])
        vector = combine(builder, vector, builder.shuffle_vector(vector, vector, mask))
        width //= 2
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def larger(builder: ir.IRBuilder, a: Any, b: Any) -> Any:
    """The larger number of each lane of two vectors; it may ignore a NaN in `a`."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def added(builder: ir.IRBuilder, a: Any, b: Any) -> Any:
    """The sum of each lane of two vectors."""
    return builder.fadd(a, b)


@intrinsic
def tile_sum(typingctx: Any, array: Any, at: Any) -> Any:
    """The sum of 4 * LANES floats from element `at` on, in the order of `reduced`."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = element_at(context, builder, signature.args[0], args[0], args[1])
        parts = [
            load(builder, builder.gep(data, [ir.Constant(args[1].type, i * LANES)]))
            for i in range(4)
        ]
        return reduced(builder, added, parts)

    return types.float32(array, types.intp), generate

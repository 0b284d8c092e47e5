"""Numbers of one byte in compiled code: int8, and float8_e4m3fn, which compiled code sees as uint8.
A pool's rows of them end with a scale; `tensors.one_byte` says how.

Knows nothing of rows and heads. `vector` reads and writes single numbers by this.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_FLOAT, _WORD, _BYTE, _HALF = ir.FloatType(), ir.IntType(32), ir.IntType(8), ir.HalfType()
_ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest integer in the low bits
_LARGEST = {types.int8: 127.0, types.uint8: 448.0}
_LEAST_NORMAL = 0x3C800000  # 2**-6 as float32: what is below has fewer bits in float8


def is_one_byte(kind: Any) -> bool:
    """Whether numba's type of an element is one of these."""
    return kind in _LARGEST


def widened_words(builder: ir.IRBuilder, kind: Any, words: Any) -> Any:
    """float32 of codes that lie in the low bytes of 32-bit words, whose other bytes may hold
    anything. `kind` is numba's type of the elements. It takes a number or a vector.

    float8_e4m3fn has four bits of exponent and three of mantissa. At the place of the exponent and
    mantissa of a half (float16) they are the same number divided by 2**8; processors widen halves:

        0 1000 100 = 3.0 -> half 0 01000 1000000000 = 0.01171875 -> float32, * 256 = 3.0
    """
    if kind == types.int8:
        high = builder.shl(words, _like(words, 24))
        return builder.sitofp(builder.ashr(high, _like(words, 24)), _as(words, _FLOAT))
    sign = builder.shl(builder.and_(words, _like(words, 0x80)), _like(words, 8))
    rest = builder.shl(builder.and_(words, _like(words, 0x7F)), _like(words, 7))
    bits = builder.trunc(builder.or_(sign, rest), _as(words, ir.IntType(16)))
    floats = builder.fpext(builder.bitcast(bits, _as(words, _HALF)), _as(words, _FLOAT))
    return builder.fmul(floats, _like(floats, 256.0))


def widened_byte(builder: ir.IRBuilder, kind: Any, code: Any) -> Any:
    """float32 of one code."""
    return widened_words(builder, kind, builder.zext(code, _WORD))


def code_of(builder: ir.IRBuilder, kind: Any, value: Any) -> Any:
    """The code of a float32, to the nearest, ties to even. The value is not beyond the largest
    number of the kind, and not NaN.
    """
    if kind == types.int8:
        return builder.trunc(_integer(builder, value), _BYTE)
    bits = builder.bitcast(value, _WORD)
    sign = builder.and_(builder.lshr(bits, _like(bits, 24)), _like(bits, 0x80))
    size = builder.and_(bits, _like(bits, 0x7FFFFFFF))
    small = builder.icmp_unsigned("<", size, _like(bits, _LEAST_NORMAL))
    steps = builder.fmul(builder.bitcast(size, _FLOAT), _like(value, 512.0))  # of 2**-9
    code = builder.select(small, _integer(builder, steps), _rounded(builder, size))
    return builder.trunc(builder.or_(builder.and_(code, _like(bits, 0x7F)), sign), _BYTE)


def _integer(builder: ir.IRBuilder, value: Any) -> Any:
    """The nearest integer, in the low bits of a word."""
    return builder.bitcast(builder.fadd(value, _like(value, _ROUND)), _WORD)


def _rounded(builder: ir.IRBuilder, size: Any) -> Any:
    """Bits of a positive float32 as those of float8, where that is a normal number: three bits of
    mantissa stay, and the exponent is counted from -7 instead of -127.
    """
    odd = builder.and_(builder.lshr(size, _like(size, 20)), _like(size, 1))
    carried = builder.add(size, builder.add(odd, _like(size, 0x7FFFF)))
    return builder.sub(builder.lshr(carried, _like(size, 20)), _like(size, 120 << 3))


def _as(value: Any, element: Any) -> Any:
    """The type of `element`, or a vector of as many of them as the value has."""
    kind = value.type
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def _like(value: Any, constant: float) -> ir.Constant:
    """A constant of the value's type."""
    kind = value.type
    many = isinstance(kind, ir.VectorType)
    return ir.Constant(kind, [constant] * kind.count if many else constant)


@intrinsic
def largest_code(typingctx: Any, array: Any) -> Any:
    """The largest number that a code in an array of this type stands for; 0 if its numbers are
    not of one byte. A constant for the compiler.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return ir.Constant(_FLOAT, _LARGEST.get(array.dtype, 0.0))

    return types.float32(array), generate


@intrinsic
def scale_at(typingctx: Any, array: Any, index: Any) -> Any:
    """The float32 whose four bytes begin at element `index` of an array of bytes."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.load(_place(context, builder, signature, args), align=1)

    return types.float32(array, types.intp), generate


@intrinsic
def put_scale(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a float32 to the four bytes from element `index` of an array of bytes on."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.store(args[2], _place(context, builder, signature, args), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32), generate


def _place(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.bitcast(builder.gep(data, [args[1]]), _FLOAT.as_pointer())

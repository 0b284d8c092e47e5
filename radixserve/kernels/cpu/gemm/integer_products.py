"""Products of codes with rows of x in parts of int8, as LLVM instructions for numba.

The 32 numbers of x that meet a unit of codes are integers times a power of two, and each integer is
written as two or three digits of 8 bits, its parts. A processor with VNNI multiplies four bytes of
codes with four bytes of a part and adds the products to an int32, in one instruction for 16
outputs. Sums of integers are exact in any order; only what follows a group is rounded:

    integers        n = sum of (code - zero) * integer of x, over the inputs of a group
    float32         output += scale * (n * power of two) [+ minimum * sum of x]

So each output is one chain of additions, unit after unit, whatever the number of rows.

The memory of a row of x is one record for each unit, in words:

    8 for each part      its bytes, the part of the lowest digits first
    1                    the power of two, float32
    1 for each half      the sum of x, float32; if groups have 32 inputs or more there is one half
    1 for each of both   the sum of each part over each half, int32
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from radixserve.kernels.cpu.compile import Intrinsic
from radixserve.kernels.cpu.gemm.decoding import (
    WORDS,
    codes_of_quad,
    prefetch_unit,
    scale_of,
)
from radixserve.kernels.cpu.gemm.formats import QUADS, UNIT, Format, halves_of
from radixserve.kernels.cpu.gemm.panel_products import WIDTH
from radixserve.kernels.cpu.vector import (
    FLOAT,
    LANES,
    VECTOR,
    each_lane,
    element_at,
    every,
    load,
    load_numbers,
    splat,
    store,
    vector_fma,
)

_INTEGER = ir.IntType(32)
_INDEX = ir.IntType(64)
_BYTES = ir.VectorType(ir.IntType(8), 4 * LANES)
_PART_BYTES = ir.VectorType(ir.IntType(8), LANES)
_DOT = ir.FunctionType(WORDS, [WORDS, _BYTES, _BYTES])
_DOT_NAME = "llvm.x86.avx512.vpdpbusd.512"
_PART_BITS = 8
_FRACTION = 23  # bits of a float's fraction
_BIAS = 127  # of a float's exponent
_LEAST = 32  # exponent, with bias: smaller numbers of x are as good as zero
_NOT_FINITE = 255  # exponent, with bias
_NAN = 0x7FC00000


def x_words(parts: int, halves: int) -> int:
    """Words of a record of x."""
    return parts * QUADS + 1 + halves + halves * parts


def _number(value: int) -> ir.Constant:
    return ir.Constant(_INDEX, value)


@cache
def split_unit(parts: int, halves: int) -> Intrinsic:
    """Generates: target[to : ...] = the record of UNIT numbers of x from element `at` on.

    The integers have 8 * parts - 1 bits with their sign. So a number is off by at most 2**-14 of
    the largest one with two parts, and by 2**-22 with three. If a number is not finite, what the
    unit adds is NaN.
    """

    @intrinsic
    def split(typingctx: Any, x: Any, at: Any, target: Any, to: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kinds = signature.args
            source = element_at(context, builder, kinds[0], args[0], args[1])
            out = element_at(context, builder, kinds[2], args[2], args[3])
            numbers = [
                load_numbers(builder, builder.gep(source, [_number(half)])) for half in (0, LANES)
            ]
            power, inverse = _powers(builder, _largest_exponent(builder, numbers), parts)
            integers = [_rounded(builder, builder.fmul(each, inverse)) for each in numbers]
            digits = [_digits(builder, each, parts) for each in integers]
            for half in range(2):
                for part in range(parts):
                    _store_bytes(builder, digits[half][part], out, part * QUADS + half * QUADS // 2)
            end = parts * QUADS
            builder.store(power, builder.gep(out, [_number(end)]))
            for half in range(halves):
                which = [half] if halves == 2 else [0, 1]
                whole = builder.sitofp(_sum(builder, [integers[i] for i in which]), FLOAT)
                place = builder.gep(out, [_number(end + 1 + half)])
                builder.store(builder.fmul(whole, power), place)
                for part in range(parts):
                    total = _sum(builder, [digits[i][part] for i in which])
                    here = builder.gep(out, [_number(end + 1 + halves + half * parts + part)])
                    builder.store(builder.bitcast(total, FLOAT), here)
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, n, target, n), generate

    return split  # type: ignore[no-any-return]


def _largest_exponent(builder: ir.IRBuilder, numbers: list[Any]) -> Any:
    """The largest exponent of the numbers, with bias."""
    sizes = [
        builder.and_(builder.bitcast(each, WORDS), each_lane(WORDS, 0x7FFFFFFF)) for each in numbers
    ]
    larger = builder.select(builder.icmp_signed(">", *sizes), *sizes)
    kind = ir.FunctionType(_INTEGER, [WORDS])
    reduce = cgutils.get_or_insert_function(
        builder.module, kind, f"llvm.vector.reduce.smax.v{LANES}i32"
    )
    return builder.lshr(builder.call(reduce, [larger]), ir.Constant(_INTEGER, _FRACTION))


def _powers(builder: ir.IRBuilder, exponent: Any, parts: int) -> tuple[Any, Any]:
    """The power of two that an integer is multiplied by, and a vector of its inverse. The first is
    NaN if a number is not finite.
    """
    least = ir.Constant(_INTEGER, _LEAST)
    clamped = builder.select(builder.icmp_signed("<", exponent, least), least, exponent)
    up = ir.Constant(_INTEGER, _PART_BITS * parts - 3)
    shift = ir.Constant(_INTEGER, _FRACTION)
    of_power = builder.sub(clamped, up)
    of_inverse = builder.sub(ir.Constant(_INTEGER, 2 * _BIAS), of_power)
    is_finite = builder.icmp_signed("<", exponent, ir.Constant(_INTEGER, _NOT_FINITE))
    bits = builder.select(is_finite, builder.shl(of_power, shift), ir.Constant(_INTEGER, _NAN))
    inverse = builder.bitcast(builder.shl(of_inverse, shift), FLOAT)
    return builder.bitcast(bits, FLOAT), splat(builder, inverse)


def _rounded(builder: ir.IRBuilder, numbers: Any) -> Any:
    """The nearest integers, ties to even."""
    kind = ir.FunctionType(VECTOR, [VECTOR])
    nearest = cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{LANES}f32")
    return builder.fptosi(builder.call(nearest, [numbers]), WORDS)


def _digits(builder: ir.IRBuilder, integers: Any, parts: int) -> list[Any]:
    """Integers as digits from -128 to 127, the lowest first."""
    found, up = [], each_lane(WORDS, 32 - _PART_BITS)
    for _ in range(parts - 1):
        low = builder.ashr(builder.shl(integers, up), up)
        found.append(low)
        integers = builder.ashr(builder.sub(integers, low), each_lane(WORDS, _PART_BITS))
    return [*found, integers]


def _store_bytes(builder: ir.IRBuilder, digits: Any, out: Any, word: int) -> None:
    place = builder.bitcast(builder.gep(out, [_number(word)]), _PART_BYTES.as_pointer())
    builder.store(builder.trunc(digits, _PART_BYTES), place, align=4)


def _sum(builder: ir.IRBuilder, vectors: list[Any]) -> Any:
    """The sum of all lanes, an int32."""
    whole = vectors[0] if len(vectors) == 1 else builder.add(*vectors)
    kind = ir.FunctionType(_INTEGER, [WORDS])
    reduce = cgutils.get_or_insert_function(
        builder.module, kind, f"llvm.vector.reduce.add.v{LANES}i32"
    )
    return builder.call(reduce, [whole])


@cache
def multiply_units(format: Format, rows: int, vectors: int, parts: int) -> Intrinsic:
    """Generates sums[r, column : column + vectors * 16] += x[r] @ tile for `rows` rows of x, over
    the units of a tile.

    x is the records of rows, `stride` words apart, from word `at` on; `tile` has the codes of the
    units, and `scales` what belongs to them, both as `decoding` leaves them, one unit or group
    behind the other. Sums of a row are 64 apart, from element `to` on, which includes the column.
    """
    halves = halves_of(format)
    per_group = max(1, format.group // UNIT)  # units
    scales_stride = WIDTH * (1 + format.has_minimum)
    words = x_words(parts, halves)

    @intrinsic
    def multiply(
        typingctx: Any,
        x: Any,
        at: Any,
        stride: Any,
        tile: Any,
        scales: Any,
        column: Any,
        sums: Any,
        to: Any,
        units: Any,
    ) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kinds = signature.args
            x_data = element_at(context, builder, kinds[0], args[0], args[1])
            codes = element_at(context, builder, kinds[3], args[3], args[5])
            factors = element_at(context, builder, kinds[4], args[4], args[5])
            out = element_at(context, builder, kinds[6], args[6], args[7])
            totals = _Totals(builder, out, rows, vectors)
            with cgutils.for_range(builder, args[8]) as loop:
                unit = builder.gep(codes, [builder.mul(loop.index, _number(QUADS * WIDTH))])
                group = builder.mul(builder.udiv(loop.index, _number(per_group)), _number(halves))
                scale = builder.gep(factors, [builder.mul(group, _number(scales_stride))])
                place = builder.gep(x_data, [builder.mul(loop.index, _number(words))])
                records = [
                    builder.gep(place, [builder.mul(args[2], _number(r))]) for r in range(rows)
                ]
                for half in range(halves):
                    here = builder.gep(scale, [_number(half * scales_stride)])
                    tile_unit = _Decoded(builder, unit, here)
                    _Product(builder, format, parts, half, tile_unit).add_to(totals, records)
            totals.store()
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, n, n, tile, scales, n, sums, n, n), generate

    return multiply  # type: ignore[no-any-return]


@cache
def multiply_packed(format: Format, rows: int, parts: int) -> Intrinsic:
    """Generates sums[r] += x[r] @ a unit of the weight for `rows` rows of x and 64 outputs. The
    codes stay in registers, so few rows take less time than with a tile.

    The record of the unit begins at word `at` of `records`; `unit` is its number in the record. x
    is as in `multiply_units`, sums begin with the first row. It also prefetches a unit's share of a
    record from word `later` on.
    """
    halves = halves_of(format)
    per_group = max(1, format.group // UNIT)  # units

    @intrinsic
    def multiply(
        typingctx: Any,
        x: Any,
        x_at: Any,
        stride: Any,
        records: Any,
        at: Any,
        unit: Any,
        sums: Any,
        later: Any,
    ) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kinds, none = signature.args, _number(0)
            x_data = element_at(context, builder, kinds[0], args[0], args[1])
            record = element_at(context, builder, kinds[3], args[3], args[4])
            out = element_at(context, builder, kinds[6], args[6], none)
            further = element_at(context, builder, kinds[3], args[3], args[7])
            place = builder.mul(args[5], _number(format.unit_words))
            codes = builder.gep(record, [builder.add(place, _number(format.codes_at))])
            first = builder.mul(builder.udiv(args[5], _number(per_group)), _number(halves))
            rows_of_x = [
                builder.gep(x_data, [builder.mul(args[2], _number(r))]) for r in range(rows)
            ]
            totals = _Totals(builder, out, rows, WIDTH // LANES)
            for half in range(halves):
                group = builder.add(first, _number(half))
                packed_unit = _Packed(builder, format, record, codes, group)
                _Product(builder, format, parts, half, packed_unit).add_to(totals, rows_of_x)
            totals.store()
            prefetch_unit(builder, format, further)
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, n, n, records, n, n, sums, n), generate

    return multiply  # type: ignore[no-any-return]


class _Totals:
    """The sums of some rows and vectors of outputs, in variables that become registers."""

    def __init__(self, builder: ir.IRBuilder, out: Any, rows: int, vectors: int) -> None:
        """`out` is a pointer to the sums, those of a row 64 apart."""
        self._builder, self.vectors = builder, vectors
        self._places = [
            [builder.gep(out, [_number(r * WIDTH + v * LANES)]) for v in range(vectors)]
            for r in range(rows)
        ]
        self.rows = [
            [cgutils.alloca_once_value(builder, load(builder, place)) for place in row]
            for row in self._places
        ]

    def store(self) -> None:
        """Write the sums back."""
        for places, row in zip(self._places, self.rows, strict=True):
            for place, total in zip(places, row, strict=True):
                store(self._builder, self._builder.load(total), place)


class _Unit(Protocol):
    """A unit of codes, or a half of it, with its scales."""

    def codes(self, quad: int, v: int) -> Any:
        """The codes of a quad for LANES outputs, as bytes of words."""

    def scale(self, which: int, v: int) -> Any:
        """LANES scales (`which` 0) or minimums (1)."""


@dataclass(frozen=True)
class _Decoded:
    """A unit of a tile, as `decoding` leaves it."""

    builder: ir.IRBuilder
    unit: Any  # pointer to its codes
    scales: Any  # pointer to its scales

    def codes(self, quad: int, v: int) -> Any:
        place = self.builder.gep(self.unit, [_number(quad * WIDTH + v * LANES)])
        return self.builder.bitcast(load(self.builder, place), WORDS)

    def scale(self, which: int, v: int) -> Any:
        place = self.builder.gep(self.scales, [_number(which * WIDTH + v * LANES)])
        return load(self.builder, place)


@dataclass(frozen=True)
class _Packed:
    """A unit of a record."""

    builder: ir.IRBuilder
    format: Format
    record: Any  # pointer to it
    unit: Any  # pointer to the codes of the unit
    group: Any  # the number of its group

    def codes(self, quad: int, v: int) -> Any:
        return codes_of_quad(self.builder, self.format, self.unit, quad, v)

    def scale(self, which: int, v: int) -> Any:
        return scale_of(self.builder, self.format, self.record, self.group, which, v)


class _Product:
    """Multiplies one unit of codes, or a half of it, by some rows."""

    def __init__(
        self, builder: ir.IRBuilder, format: Format, parts: int, half: int, unit: _Unit
    ) -> None:
        self._builder, self._format, self._parts, self._unit = builder, format, parts, unit
        halves = halves_of(format)
        self._quads = range(half * QUADS // halves, (half + 1) * QUADS // halves)
        self._power_at = parts * QUADS
        self._sum_at = self._power_at + 1 + half
        self._part_sums_at = self._power_at + 1 + halves + half * parts

    def add_to(self, totals: _Totals, records: list[Any]) -> None:
        """totals += scale * integers * power of two [+ minimum * sum of x], where `records` are
        pointers to those of x.
        """
        builder, vectors = self._builder, range(totals.vectors)
        numbers = self._integers(records, totals.vectors)
        scales = [self._unit.scale(0, v) for v in vectors]
        minimums = [self._unit.scale(1, v) for v in vectors] if self._format.has_minimum else []
        for r, record in enumerate(records):
            power = self._splat(record, self._power_at)
            for v, total in enumerate(totals.rows[r]):
                number = builder.fmul(numbers[r][v], power)
                found = vector_fma(builder, scales[v], number, builder.load(total))
                if minimums:
                    whole = self._splat(record, self._sum_at)
                    found = vector_fma(builder, minimums[v], whole, found)
                builder.store(found, total)

    def _integers(self, records: list[Any], vectors: int) -> list[list[Any]]:
        """The exact sums as floats, for each row and vector; those of three parts are rounded."""
        builder = self._builder
        sums = [[list(each) for _ in range(vectors)] for each in map(self._starts, records)]
        dot = cgutils.get_or_insert_function(builder.module, _DOT, _DOT_NAME)
        for quad in self._quads:
            columns = [builder.bitcast(self._unit.codes(quad, v), _BYTES) for v in range(vectors)]
            for r, record in enumerate(records):
                for part in range(self._parts):
                    x = builder.bitcast(self._splat(record, part * QUADS + quad), _BYTES)
                    for v, column in enumerate(columns):
                        sums[r][v][part] = builder.call(dot, [sums[r][v][part], column, x])
        return [[self._joined(each) for each in row] for row in sums]

    def _starts(self, record: Any) -> list[Any]:
        """What the sums of the parts begin with, because codes are not less `zero` yet."""
        builder = self._builder
        if not self._format.zero:
            return [ir.Constant(WORDS, [0] * LANES)] * self._parts
        less = ir.Constant(_INTEGER, -self._format.zero)
        wholes = [
            builder.load(builder.gep(record, [_number(self._part_sums_at + part)]))
            for part in range(self._parts)
        ]
        return [
            splat(builder, builder.mul(builder.bitcast(each, _INTEGER), less)) for each in wholes
        ]

    def _joined(self, parts: list[Any]) -> Any:
        """The number whose digits were multiplied, as a float."""
        builder = self._builder
        second = builder.shl(parts[1], each_lane(WORDS, _PART_BITS))
        low = builder.sitofp(builder.add(parts[0], second), VECTOR)
        if len(parts) == 2:
            return low
        return vector_fma(
            builder, builder.sitofp(parts[2], VECTOR), every(1 << 2 * _PART_BITS), low
        )

    def _splat(self, record: Any, word: int) -> Any:
        """One float of a record of x in every lane."""
        builder = self._builder
        return splat(builder, builder.load(builder.gep(record, [_number(word)])))

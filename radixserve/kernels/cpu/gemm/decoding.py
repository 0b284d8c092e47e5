"""Decodes records of codes (`formats`) into tiles: the one place that differs between formats.

`codes_of_unit` gives codes as bytes, four inputs of an output in a word, `scales_of_group` the
scales and minimums that belong to them, as float32. `unit_decoder` makes values of both.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from radixserve.kernels.cpu.compile import Intrinsic, compiled, on_stack
from radixserve.kernels.cpu.gemm.formats import QUAD, QUADS, UNIT, Format, halves_of
from radixserve.kernels.cpu.gemm.panel_products import WIDTH
from radixserve.kernels.cpu.vector import (
    LANES,
    LINE,
    VECTOR,
    each_lane,
    element_at,
    load,
    prefetch_line,
    store,
    vector_fma,
)

WORDS = ir.VectorType(ir.IntType(32), LANES)
_BYTES = ir.VectorType(ir.IntType(8), LANES)
_HALVES = ir.VectorType(ir.HalfType(), LANES)
_VECTORS = WIDTH // LANES
_EACH_BYTE = 0x01010101


@cache
def codes_of_unit(format: Format) -> Intrinsic:
    """Generates tile[to : ...] = the codes of a unit, from word `at` of the records on, as 8 rows
    of 64 words, one for each quad. It also prefetches a unit's share of a record from word `later`
    on.
    """

    @intrinsic
    def decode(typingctx: Any, records: Any, at: Any, tile: Any, to: Any, later: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kinds = signature.args
            source = element_at(context, builder, kinds[0], args[0], args[1])
            target = element_at(context, builder, kinds[2], args[2], args[3])
            further = element_at(context, builder, kinds[0], args[0], args[4])
            prefetch_unit(builder, format, further)
            for quad in range(QUADS):
                for v in range(_VECTORS):
                    codes = codes_of_quad(builder, format, source, quad, v)
                    place = ir.Constant(ir.IntType(64), quad * WIDTH + v * LANES)
                    store(builder, builder.bitcast(codes, VECTOR), builder.gep(target, [place]))
            return context.get_dummy_value()

        n = types.intp
        return types.void(records, n, tile, n, n), generate

    return decode  # type: ignore[no-any-return]


def prefetch_unit(builder: ir.IRBuilder, format: Format, pointer: Any) -> None:
    """Prefetch a unit's share of a record from `pointer` on."""
    for line in range(0, format.unit_share, LINE):
        place = ir.Constant(ir.IntType(64), line)
        prefetch_line(builder, builder.gep(pointer, [place]))


def codes_of_quad(builder: ir.IRBuilder, format: Format, source: Any, quad: int, v: int) -> Any:
    """The codes of a quad for LANES outputs, as bytes of words, from the pointer to the codes of a
    unit.
    """
    found: Any = None
    position, begin = 0, 0
    for bits in format.planes:
        row, back = quad * bits // 8, quad * bits % 8
        place = ir.Constant(ir.IntType(64), begin + row * WIDTH + v * LANES)
        words = builder.bitcast(load(builder, builder.gep(source, [place])), WORDS)
        if back > position:
            words = builder.lshr(words, each_lane(WORDS, back - position))
        elif back < position:
            words = builder.shl(words, each_lane(WORDS, position - back))
        if bits < 8:
            mask = (((1 << bits) - 1) << position) * _EACH_BYTE
            words = builder.and_(words, each_lane(WORDS, mask))
        found = words if found is None else builder.or_(found, words)
        position, begin = position + bits, begin + bits * WIDTH
    return found


@cache
def scales_of_group(format: Format) -> Intrinsic:
    """Generates scales[to : ...] = the 64 scales of group number `group` of the record that begins
    at word `at`, and behind them, if the format has them, the 64 minimums.
    """

    @intrinsic
    def decode(typingctx: Any, records: Any, at: Any, group: Any, scales: Any, to: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kinds = signature.args
            source = element_at(context, builder, kinds[0], args[0], args[1])
            target = element_at(context, builder, kinds[3], args[3], args[4])
            for which in range(1 + format.has_minimum):
                for v in range(_VECTORS):
                    value = scale_of(builder, format, source, args[2], which, v)
                    place = ir.Constant(ir.IntType(64), which * WIDTH + v * LANES)
                    store(builder, value, builder.gep(target, [place]))
            return context.get_dummy_value()

        n = types.intp
        return types.void(records, n, n, scales, n), generate

    return decode  # type: ignore[no-any-return]


def scale_of(
    builder: ir.IRBuilder, format: Format, source: Any, group: Any, which: int, v: int
) -> Any:
    """LANES scales (`which` 0) or minimums (1) of a group, from the pointer to a record."""
    value = _scale_of_record(builder, format, source, which, v)
    if not format.is_nested:
        return value
    return builder.fmul(value, _byte(builder, format, source, group, which, v))


def _scale_of_record(builder: ir.IRBuilder, format: Format, source: Any, which: int, v: int) -> Any:
    """The same of a whole record, as floats."""
    begin = which * format.scale_words + v * LANES * format.scale_bits // 32
    place = builder.gep(source, [ir.Constant(ir.IntType(64), begin)])
    if format.scale_bits == 32:
        return load(builder, place)
    halves = builder.load(builder.bitcast(place, _HALVES.as_pointer()), align=4)
    return builder.fpext(halves, VECTOR)


def _byte(
    builder: ir.IRBuilder, format: Format, source: Any, group: Any, which: int, v: int
) -> Any:
    """LANES bytes of a group, as floats."""
    words = WIDTH // QUAD
    begin = format.bytes_at + which * format.groups * words + v * LANES // QUAD
    place = builder.add(
        builder.mul(group, ir.Constant(group.type, words)), ir.Constant(group.type, begin)
    )
    pointer = builder.bitcast(builder.gep(source, [place]), _BYTES.as_pointer())
    return builder.sitofp(builder.load(pointer, align=4), VECTOR)


@cache
def _floats_of_unit(format: Format) -> Intrinsic:
    """Generates: out = the values of a unit, 32 rows of 64 floats, from its codes and the scales of
    its groups, as the functions above leave them.
    """
    halves = halves_of(format)
    stride = WIDTH * (1 + format.has_minimum)

    @intrinsic
    def decode(typingctx: Any, tile: Any, scales: Any, out: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            none = ir.Constant(ir.IntType(64), 0)
            codes, factors, target = (
                element_at(context, builder, kind, arg, none)
                for kind, arg in zip(signature.args, args, strict=True)
            )

            def at_word(base: Any, index: int) -> Any:
                return load(builder, builder.gep(base, [ir.Constant(ir.IntType(64), index)]))

            for quad in range(QUADS):
                begin = quad * halves // QUADS * stride
                for v in range(0, WIDTH, LANES):
                    words = builder.bitcast(at_word(codes, quad * WIDTH + v), WORDS)
                    scale = at_word(factors, begin + v)
                    minimum = at_word(factors, begin + WIDTH + v) if format.has_minimum else None
                    for i in range(QUAD):
                        value = _value(builder, format, words, i, scale, minimum)
                        place = ir.Constant(ir.IntType(64), (quad * QUAD + i) * WIDTH + v)
                        store(builder, value, builder.gep(target, [place]))
            return context.get_dummy_value()

        return types.void(tile, scales, out), generate

    return decode  # type: ignore[no-any-return]


def _value(
    builder: ir.IRBuilder, format: Format, words: Any, i: int, scale: Any, minimum: Any | None
) -> Any:
    """The values of the i-th codes of quads."""
    shifted = builder.lshr(words, each_lane(WORDS, 8 * i))
    codes = builder.and_(shifted, each_lane(WORDS, 255))
    number = builder.sitofp(builder.sub(codes, each_lane(WORDS, format.zero)), VECTOR)
    if minimum is None:
        return builder.fmul(scale, number)
    return vector_fma(builder, scale, number, minimum)


@cache
def unit_decoder(format: Format) -> Any:
    """A function for compiled code: decode(records, panel, units, unit, out) writes the values of a
    unit of a panel, 32 rows of 64 floats, to the beginning of `out`. A panel has `units` units.
    """
    per_record, halves = format.units, halves_of(format)
    per_group, scales_words = max(1, format.group // UNIT), WIDTH * (1 + format.has_minimum)
    room_for_codes = on_stack(types.float32, QUADS * WIDTH)
    room_for_scales = on_stack(types.float32, halves * scales_words)
    decode_codes, decode_scales = codes_of_unit(format), scales_of_group(format)
    decode_floats = _floats_of_unit(format)
    record_words, codes_at, unit_words = format.record_words, format.codes_at, format.unit_words
    unit_share = format.unit_share

    @compiled
    def decode(records: Any, panel: int, units: int, unit: int, out: Any) -> None:
        codes, scales = room_for_codes(), room_for_scales()
        begin = (panel * units + unit) // per_record * record_words
        within = unit % per_record
        for half in range(halves):
            group = within // per_group * halves + half
            decode_scales(records, begin, group, scales, half * scales_words)
        at = begin + codes_at + within * unit_words
        decode_codes(records, at, codes, 0, begin + record_words + within * unit_share)
        decode_floats(codes, scales, out)

    return decode

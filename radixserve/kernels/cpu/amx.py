"""Products of tiles of bfloat16 on AMX, as LLVM instructions for numba.

A processor with AMX has eight registers ("tiles") of 16 rows of 64 bytes. One instruction
multiplies a tile of x, 16 rows of 32 inputs, by a tile of the weight, 16 pairs of inputs of 16
outputs, and adds the product to a tile of sums, 16 x 16 float32. The processor adds the two
products of a pair of inputs, then pair after pair, in ascending order, each output for itself: a
row's sums depend neither on other rows nor on how many rows a tile has.

    tiles 0-3 hold sums, 4-5 x, 6-7 the weight; a step is 32 inputs

                weight [16 pairs of inputs][outputs]
                    6          7
    x      4        0          1          2 x 2 tiles: 32 rows x 32 outputs
           5        2          3
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from radixserve.kernels.cpu.compile import Intrinsic, compiled, data_of, on_stack
from radixserve.kernels.cpu.vector import prefetch_line

TILE_ROWS = 16
"""Rows of x, or outputs, of a tile."""

STEP = 32
"""Inputs of a tile."""

TILE_BYTES = 1024

_ROW_BYTES = 64  # of a tile
_BYTE, _LONG, _NOTHING = ir.IntType(8), ir.IntType(64), ir.VoidType()
_POINTER = _BYTE.as_pointer()
_X, _WEIGHT = 4, 6  # numbers of the first tile of each


class Walk(NamedTuple):
    """Where the tiles of x or of the weight lie: addresses and distances in bytes."""

    begin: Any  # of the first tile
    row: Any  # from a row of a tile to the next one
    beside: Any  # from a tile to the one for the next 16 rows or outputs
    step: Any  # from a tile to the one for the next 32 inputs


def _call(builder: ir.IRBuilder, name: str, *arguments: Any) -> None:
    """Call an AMX instruction. Numbers are those of tiles."""
    values = [ir.Constant(_BYTE, each) if isinstance(each, int) else each for each in arguments]
    kind = ir.FunctionType(_NOTHING, [each.type for each in values])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), values)


def _load(builder: ir.IRBuilder, tile: int, address: Any, row: Any) -> None:
    _call(builder, "tileloadd64", tile, builder.inttoptr(address, _POINTER), row)


class Ahead(NamedTuple):
    """Memory to prefetch: in each step the next `lines` cache lines, a multiple of four."""

    begin: Any  # address
    lines: Any


def multiply_tiles(rows: int, columns: int, parts: int) -> Intrinsic:
    """Generates sums[r, c] += x[r] @ weight[:, c] for `rows` x `columns` tiles, at most four, and
    `steps` steps.

    `x` and `weight` are `Walk`s. Tile (r, c) of the sums lies at `sums` + r * 16 * `stride` +
    c * 64; `fresh` other than 0 begins with zeros instead of what is there. Each step has `parts`
    tiles of x for the same inputs, 1 KB apart, whose sum is x. `ahead` is `Ahead`.
    """
    places = [(r, c) for r in range(rows) for c in range(columns)]

    def tile_of(place: tuple[int, int]) -> int:
        return place[0] * columns + place[1]

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        x, weight = (_fields(builder, Walk, args[i]) for i in range(2))
        sums, stride, steps, fresh = args[2:6]
        ahead = _fields(builder, Ahead, args[6])
        targets = [
            _sum(builder, (sums, builder.mul(stride, _number(16 * r)), _number(c * _ROW_BYTES)))
            for r, c in places
        ]
        with builder.if_else(builder.icmp_signed("!=", fresh, _number(0))) as (zero, load):
            with zero:
                for place in places:
                    _call(builder, "tilezero", tile_of(place))
            with load:
                for place, target in zip(places, targets, strict=True):
                    _load(builder, tile_of(place), target, stride)
        with cgutils.for_range(builder, steps) as loop:
            _prefetch(builder, ahead, loop.index)
            for part in range(parts):
                _load_x(builder, x, loop.index, rows, part)
                for c in range(columns):
                    if part == 0 or columns > 2:  # two tiles of the weight stay for all parts
                        place = _tile_at(builder, weight, loop.index, c)
                        _load(builder, _WEIGHT + c % 2, place, weight.row)
                    for r in range(rows):
                        _call(builder, "tdpbf16ps", tile_of((r, c)), _X + r, _WEIGHT + c % 2)
        for place, target in zip(places, targets, strict=True):
            pointer = builder.inttoptr(target, _POINTER)
            _call(builder, "tilestored64", tile_of(place), pointer, stride)
        return context.get_dummy_value()

    @intrinsic
    def multiply(
        typingctx: Any,
        x: Any,
        weight: Any,
        sums: Any,
        stride: Any,
        steps: Any,
        fresh: Any,
        ahead: Any,
    ) -> Any:
        n = types.int64
        return types.void(x, weight, n, n, n, n, ahead), generate

    return multiply  # type: ignore[no-any-return]


def _load_x(builder: ir.IRBuilder, x: Walk, step: Any, rows: int, part: int) -> None:
    """Load one part of x for a step."""
    for r in range(rows):
        place = builder.add(_tile_at(builder, x, step, r), _number(part * TILE_BYTES))
        _load(builder, _X + r, place, x.row)


def _prefetch(builder: ir.IRBuilder, ahead: Ahead, step: Any) -> None:
    """Prefetch the lines of a step, four at a time."""
    size = builder.mul(ahead.lines, _number(_ROW_BYTES))
    begin = builder.add(ahead.begin, builder.mul(step, size))
    with cgutils.for_range(builder, builder.udiv(ahead.lines, _number(4))) as loop:
        for line in range(4):
            further = builder.add(builder.mul(loop.index, _number(4)), _number(line))
            place = builder.add(begin, builder.mul(further, _number(_ROW_BYTES)))
            prefetch_line(builder, builder.inttoptr(place, _POINTER))


def _fields(builder: ir.IRBuilder, kind: Any, value: Any) -> Any:
    """The fields of a named tuple in compiled code."""
    return kind(*(builder.extract_value(value, i) for i in range(len(kind._fields))))


def _tile_at(builder: ir.IRBuilder, walk: Walk, step: Any, tile: int) -> Any:
    """The address of a tile."""
    along = builder.mul(step, walk.step)
    return _sum(builder, (walk.begin, along, builder.mul(walk.beside, _number(tile))))


def _sum(builder: ir.IRBuilder, terms: Sequence[Any]) -> Any:
    return reduce(builder.add, terms)


def _number(value: int) -> ir.Constant:
    return ir.Constant(_LONG, value)


@intrinsic
def configure_tiles(typingctx: Any, address: Any) -> Any:
    """Set the sizes of the tiles from the 64 bytes at `address`."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _call(builder, "ldtilecfg", builder.inttoptr(args[0], _POINTER))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def release_tiles(typingctx: Any) -> Any:
    """Give the tiles back, so that the system need not save them."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


_room_for_sizes = on_stack(types.uint8, 64)


@compiled
def configure(rows: int) -> None:
    """Set the sizes of the tiles: 16 rows of 64 bytes, but `rows` rows for sums and x.

    The 64 bytes are: palette 1; at 16 the bytes of a row of each tile (uint16); at 48 the rows.
    """
    sizes = _room_for_sizes()
    sizes[:] = np.uint8(0)
    sizes[0] = np.uint8(1)
    for tile in range(8):
        sizes[16 + 2 * tile] = np.uint8(_ROW_BYTES)
        sizes[48 + tile] = np.uint8(rows if tile < _WEIGHT else TILE_ROWS)
    configure_tiles(data_of(sizes))

"""The GEMM kernels that multiply codes by rows of x in parts of int8 (AVX512-BF16 and above, which
have VNNI).

A thread multiplies a panel by a slice of the rows tile by tile. A tile is some units of the panel:
their codes as bytes and their scales as float32, decoded once and then multiplied by row after row.
float32 activations are split into three parts, bfloat16 ones into two (`integer_products`).
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import types

from radixserve.kernels.cpu.compile import compiled, data_of, floats_at, on_stack
from radixserve.kernels.cpu.gemm.block import (
    PREPARED,
    GemmBlock,
    Item,
    item_at,
    num_items,
    own_run,
    prefetch_segment,
    sums_writer,
    take_item,
    wait_for_others,
)
from radixserve.kernels.cpu.gemm.decoding import codes_of_unit, scales_of_group
from radixserve.kernels.cpu.gemm.formats import QUADS, UNIT, Format, halves_of
from radixserve.kernels.cpu.gemm.integer_products import (
    multiply_packed,
    multiply_units,
    split_unit,
    x_words,
)
from radixserve.kernels.cpu.gemm.panel_products import WIDTH
from radixserve.kernels.cpu.vector import LANES, add_atomically

MOST_ROWS = 96
"""The most rows of an item."""

TILE_UNITS = 8
"""The most units of a tile, whose bytes take a third of the first-level cache."""

AHEAD_WORDS = 2048
"""How far ahead of what is decoded a weight is prefetched."""

OWN_ROWS = 2
"""So few rows of x each thread splits for itself, which takes less time than waiting for others."""

_ZERO = np.float32(0)


class Room(NamedTuple):
    """The working memory of one thread, flat float32, on its stack."""

    sums: Any  # [rows * 64]
    codes: Any  # [units of a tile * 8 * 64], words of four codes
    scales: Any  # [groups of a tile * 64], with minimums twice as many


def parts_of(bfloat16: bool) -> int:
    """Parts of a number of x."""
    return 2 if bfloat16 else 3


def number_bytes(format: Format, bfloat16: bool) -> int:
    """Bytes of scratch memory for a number of x, rounded up."""
    return -(-4 * x_words(parts_of(bfloat16), halves_of(format)) // UNIT)


@cache
def gemm_kernel(format: Format, bfloat16: bool) -> Callable[[Any], None]:
    """The kernel for a format and activations of bfloat16 or float32. `native` compiles it."""
    read = GemmBlock.read_bfloat16 if bfloat16 else GemmBlock.read
    parts, halves = parts_of(bfloat16), halves_of(format)
    words, unit_words = x_words(parts, halves), format.unit_words
    per_record, record_words, codes_at = format.units, format.record_words, format.codes_at
    groups, unit_share = format.groups, format.unit_share
    tile_units = max(per_record, TILE_UNITS)
    tile_words, tile_records = QUADS * WIDTH, tile_units // per_record
    scales_stride = WIDTH * (1 + format.has_minimum)
    split = split_unit(parts, halves)
    decode_codes, decode_scales = codes_of_unit(format), scales_of_group(format)
    one, two = (multiply_units(format, rows, 4, parts) for rows in (1, 2))
    one_packed, two_packed = (multiply_packed(format, rows, parts) for rows in (1, 2))
    three, four = (multiply_units(format, rows, 2, parts) for rows in (3, 4))
    write_sums = sums_writer(rounds=False)
    room_for_sums = on_stack(types.float32, MOST_ROWS * WIDTH)
    room_for_codes = on_stack(types.float32, tile_units * tile_words)
    room_for_scales = on_stack(types.float32, tile_records * groups * scales_stride)

    @compiled
    def split_row(b: Any, row: int, target: Any, to: int) -> None:
        for unit in range(b.inputs // UNIT):
            split(b.x, row * b.inputs + unit * UNIT, target, to + unit * words)

    @compiled
    def split_rows(b: Any) -> Any:
        """The address of the records of all rows of x."""
        size = b.inputs // UNIT * words
        number = add_atomically(b.counter, PREPARED, 1)
        if b.rows <= OWN_ROWS:
            own = data_of(b.scratch) + number * b.rows * size * 4
            target = floats_at(own, b.rows * size)
            for row in range(b.rows):
                split_row(b, row, target, row * size)
            return own
        target = floats_at(data_of(b.scratch), b.rows * size)
        while number < b.rows:
            split_row(b, number, target, number * size)
            number = add_atomically(b.counter, PREPARED, 1)
        wait_for_others(b)
        return data_of(b.scratch)

    @compiled
    def ahead_of(at: int, end: int, after: int) -> Any:
        """How far ahead of word `at` of a panel, which ends at word `end`, the weight is
        prefetched. Behind the end it is the panel from word `after` on, which this thread takes
        next.
        """
        return AHEAD_WORDS if at + AHEAD_WORDS < end else AHEAD_WORDS + after - end

    @compiled
    def decode_record(b: Any, at: int, number: int, ahead: int, room: Room) -> None:
        """Decode record `number` of a tile, which begins at word `at`."""
        for group in range(groups):
            place = (number * groups + group) * scales_stride
            decode_scales(b.weight, at, group, room.scales, place)
        for unit in range(per_record):
            to = (number * per_record + unit) * tile_words
            later = at + ahead + unit * unit_share
            decode_codes(b.weight, at + codes_at + unit * unit_words, room.codes, to, later)
            prefetch_segment(b)

    @compiled
    def multiply_tile(x: Any, at: int, stride: int, rows: int, units: int, room: Room) -> None:
        codes, scales, sums = room.codes, room.scales, room.sums
        for row in range(0, rows, 4):
            left, here, to = rows - row, at + row * stride, row * WIDTH
            if left == 1:
                one(x, here, stride, codes, scales, 0, sums, to, units)
            elif left == 2:
                two(x, here, stride, codes, scales, 0, sums, to, units)
            elif left == 3:
                for column in range(0, WIDTH, 2 * LANES):
                    three(x, here, stride, codes, scales, column, sums, to + column, units)
            else:
                for column in range(0, WIDTH, 2 * LANES):
                    four(x, here, stride, codes, scales, column, sums, to + column, units)

    @compiled
    def multiply_tiles(
        b: Any, x: Any, item: Item, begin: int, records: int, room: Room, after: int
    ) -> None:
        """room.sums[rows, 64] += a slice of x @ the records of a panel, tile by tile."""
        stride, end = b.inputs // UNIT * words, begin + records * record_words
        for first in range(0, records, tile_records):
            count = min(tile_records, records - first)
            for number in range(count):
                at = begin + (first + number) * record_words
                decode_record(b, at, number, ahead_of(at, end, after), room)
            place = item.row * stride + first * per_record * words
            multiply_tile(x, place, stride, item.rows, count * per_record, room)

    @compiled
    def multiply_records(
        b: Any, x: Any, item: Item, begin: int, records: int, room: Room, after: int
    ) -> None:
        """The same for one or two rows, from the records themselves."""
        stride, end = b.inputs // UNIT * words, begin + records * record_words
        place = item.row * stride
        for at in range(begin, end, record_words):
            ahead = ahead_of(at, end, after)
            for unit in range(per_record):
                later = at + ahead + unit * unit_share
                if item.rows == 1:
                    one_packed(x, place, stride, b.weight, at, unit, room.sums, later)
                else:
                    two_packed(x, place, stride, b.weight, at, unit, room.sums, later)
                place += words
                prefetch_segment(b)

    @compiled
    def multiply_panel(b: Any, x: Any, item: Item, following: int, room: Room) -> None:
        """room.sums[rows, 64] = a slice of x @ one panel."""
        records = b.inputs // UNIT // per_record
        begin, after = item.panel * records * record_words, following * records * record_words
        room.sums[: item.rows * WIDTH] = _ZERO
        if item.rows <= OWN_ROWS:
            multiply_records(b, x, item, begin, records, room, after)
        else:
            multiply_tiles(b, x, item, begin, records, room, after)

    def kernel(address: Any) -> None:
        """One thread: take items until none is left."""
        b = read(address)
        x = floats_at(split_rows(b), len(b.scratch) // 4)
        room = Room(room_for_sums(), room_for_codes(), room_for_scales())
        own, count = own_run(b), num_items(b)
        index = take_item(b, own)
        while index < count:
            item, index = item_at(b, index), take_item(b, own)
            multiply_panel(b, x, item, item_at(b, index).panel, room)
            write_sums(b, item.row, item.rows, item.panel * WIDTH, WIDTH, room.sums, 0)

    kernel.__name__ = f"multiply_{format.name}_{'bfloat16' if bfloat16 else 'float32'}"
    return kernel

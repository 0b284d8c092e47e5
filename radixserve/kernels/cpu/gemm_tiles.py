"""The GEMM kernels that multiply with tiles of bfloat16 (AMX).

bfloat16 activations are multiplied as they are. float32 activations are split into three bfloat16
whose sum is exactly the same number; each part is multiplied and all products are added in float32,
so that the result is as accurate as a float32 product. Each output is one sum, in the order of the
inputs, and for each 32 inputs in the order of the parts.

    a panel's block: 16 steps of 32 inputs x 64 outputs; its halves are multiplied one after the
    other, because 32 KB of a half fit into the first-level cache while rows pass by

              32 outputs   32 outputs                       1st   2nd half
    steps     [  1 KB ][  1 KB ] [  1 KB ][  1 KB ]   rows  0-31   1     5
      |           ...                                      32-63   2     6
      v                                                      ...
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import types

from radixserve.kernels.cpu.activations import copy_tiles
from radixserve.kernels.cpu.compile import compiled, data_of, halves_at, on_stack
from radixserve.kernels.cpu.gemm_block import (
    GemmBlock,
    Item,
    item_at,
    num_items,
    take_item,
    write_row,
)
from radixserve.kernels.cpu.panel_products import WIDTH
from radixserve.kernels.cpu.tiles import (
    STEP,
    TILE_BYTES,
    TILE_ROWS,
    Ahead,
    Walk,
    configure,
    multiply_tiles,
    release_tiles,
)

SLICE = 256
"""The most rows of an item."""

PANELS = 4
"""The most panels of an item."""

_STEPS = 16  # of a block
_ROW = 64  # bytes of a row of a tile
_PANEL_ROW = 4 * WIDTH  # bytes of a row of sums, or of a pair of inputs of the weight
_PANEL_STEP = STEP // 2 * _PANEL_ROW
_LINES = _PANEL_STEP // 64  # cache lines of the weight that a step of a panel reads

_room_for_sums = on_stack(types.float32, PANELS * SLICE * WIDTH)


@cache
def gemm_kernel(bfloat16: bool) -> Callable[[Any], None]:
    """The kernel for activations of bfloat16 or float32. `native` compiles it."""
    read = GemmBlock.read_bfloat16 if bfloat16 else GemmBlock.read
    parts = 1 if bfloat16 else 3
    two, one = multiply_tiles(2, 2, parts), multiply_tiles(1, 4, parts)

    @compiled
    def tiles_of_x(b: Any) -> Walk:
        """Where the tiles of the first 16 rows of x lie."""
        steps = b.padded // STEP
        if len(b.scratch):
            size = parts * TILE_BYTES
            copy_tiles(b, halves_at(data_of(b.scratch), len(b.scratch) // 2), parts)
            return Walk(data_of(b.scratch), _ROW, steps * size, size)
        row = 2 * b.inputs
        return Walk(data_of(b.x), row, TILE_ROWS * row, _ROW)

    @compiled
    def multiply_block(
        x: Walk, weight: int, sums: int, rows: int, steps: int, fresh: int, later: int
    ) -> None:
        """sums[rows, 64] += rows of x @ a block of a panel at address `weight`. A block at address
        `later` is prefetched, a part of it in each call.
        """
        pairs = (rows + TILE_ROWS - 1) // TILE_ROWS // 2
        single = (rows + TILE_ROWS - 1) // TILE_ROWS % 2
        calls, call = 2 * pairs + single, 0
        lines = (_LINES + 4 * calls - 1) // (4 * calls) * 4
        for half in range(2):
            columns = Walk(weight + half * 2 * _ROW, _PANEL_ROW, _ROW, _PANEL_STEP)
            for pair in range(pairs):
                ahead = Ahead(later + call * steps * lines * _ROW, lines)
                here = Walk(x.begin + 2 * pair * x.beside, x.row, x.beside, x.step)
                place = sums + 2 * pair * TILE_ROWS * _PANEL_ROW + half * 2 * _ROW
                two(here, columns, place, _PANEL_ROW, steps, fresh, ahead)
                call += 1
        if single:
            columns = Walk(weight, _PANEL_ROW, _ROW, _PANEL_STEP)
            ahead = Ahead(later + call * steps * lines * _ROW, lines)
            here = Walk(x.begin + 2 * pairs * x.beside, x.row, x.beside, x.step)
            place = sums + 2 * pairs * TILE_ROWS * _PANEL_ROW
            one(here, columns, place, _PANEL_ROW, steps, fresh, ahead)

    @compiled
    def multiply_item(b: Any, x: Walk, item: Item, following: int, sums: int) -> None:
        """sums[panel, rows, 64] = a slice of x @ some panels, block after block of inputs, so that
        a block of x serves all panels. `following` is the panel that this thread multiplies next.
        """
        steps, size = b.padded // STEP, b.padded // STEP * _PANEL_STEP
        weight, begin = data_of(b.weight), item.row // TILE_ROWS * x.beside + x.begin
        for first in range(0, steps, _STEPS):
            now = min(_STEPS, steps - first)
            here = Walk(begin + first * x.step, x.row, x.beside, x.step)
            for panel in range(item.panels):
                block = weight + (item.panel + panel) * size + first * _PANEL_STEP
                if panel + 1 < item.panels:
                    later = block + size
                elif first + now < steps:
                    later = weight + item.panel * size + (first + now) * _PANEL_STEP
                else:
                    later = weight + following * size
                place = sums + panel * SLICE * _PANEL_ROW
                multiply_block(here, block, place, item.rows, now, int(first == 0), later)

    def kernel(address: Any) -> None:
        """One thread: take items until none is left."""
        b = read(address)
        x, sums = tiles_of_x(b), _room_for_sums()
        configure(min(b.rows, TILE_ROWS))
        index, count = take_item(b), num_items(b)
        while index < count:
            item, index = item_at(b, index), take_item(b)
            multiply_item(b, x, item, item_at(b, index).panel, data_of(sums))
            for panel in range(item.panels):
                for row in range(item.rows):
                    at = (panel * SLICE + row) * WIDTH
                    write_row(b, item.row + row, item.panel + panel, sums, at)
        release_tiles()

    kernel.__name__ = "multiply_tiles_bfloat16" if bfloat16 else "multiply_tiles_float32"
    return kernel

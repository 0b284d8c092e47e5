"""The GEMM kernels that multiply with tiles of bfloat16 (AMX).

bfloat16 activations are multiplied as they are. float32 activations are split into three bfloat16
whose sum is exactly the same number; each part is multiplied and all products are added in float32,
so that the result is as accurate as a float32 product. Each output is one sum, in the order of the
inputs, and for each 32 inputs in the order of the parts.

    a panel's block: up to 20 steps of 32 inputs x 64 outputs; its halves are multiplied one after
    the other, because 40 KB of a half fit into the first-level cache while rows pass by

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
from typing import Any, NamedTuple

from numba import types

from radixserve.kernels.cpu.amx import (
    STEP,
    TILE_BYTES,
    TILE_ROWS,
    Ahead,
    Walk,
    configure,
    multiply_tiles,
    release_tiles,
)
from radixserve.kernels.cpu.compile import compiled, data_of, halves_at, on_stack
from radixserve.kernels.cpu.gemm.activations import copy_tiles
from radixserve.kernels.cpu.gemm.block import (
    GemmBlock,
    Item,
    item_at,
    num_items,
    own_run,
    sums_writer,
    take_item,
)
from radixserve.kernels.cpu.gemm.panel_products import WIDTH

SLICE = 256
"""The most rows of an item."""

PANELS = 4
"""The most panels of an item."""

_STEPS = 20  # of a block, at most
BLOCK_INPUTS = _STEPS * STEP
"""The most inputs of a block."""

_ROW = 64  # bytes of a row of a tile
_PANEL_ROW = 4 * WIDTH  # bytes of a row of sums, or of a pair of inputs of the weight
_PANEL_STEP = STEP // 2 * _PANEL_ROW
_HALF = WIDTH // 2
_LINES = _PANEL_STEP // 64  # cache lines of the weight that a step of a panel reads

_room_for_sums = on_stack(types.float32, PANELS * SLICE * WIDTH)


class Part(NamedTuple):
    """The sums of one panel for a slice of the rows."""

    place: Any  # index of the first one in the thread's room
    row: Any  # the first row
    rows: Any
    output: Any  # the first output
    fresh: Any  # 1: they begin with zeros
    complete: Any  # 1: they are complete after this block of inputs


@compiled
def _depth(steps: int) -> Any:
    """Steps of a block, so that all blocks are about equal."""
    blocks = (steps + _STEPS - 1) // _STEPS
    return (steps + blocks - 1) // blocks


@cache
def gemm_kernel(bfloat16: bool) -> Callable[[Any], None]:
    """The kernel for activations of bfloat16 or float32. `native` compiles it."""
    read = GemmBlock.read_bfloat16 if bfloat16 else GemmBlock.read
    parts = 1 if bfloat16 else 3
    write_sums = sums_writer(rounds=True)
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
        b: Any, x: Walk, weight: int, sums: Any, part: Part, steps: int, later: int
    ) -> None:
        """sums[rows, 64] += rows of x @ a block of a panel at address `weight`. What is complete is
        written while it is in the cache. A block at address `later` is prefetched, a part of it in
        each call.
        """
        blocks = (part.rows + TILE_ROWS - 1) // TILE_ROWS
        pairs, single = blocks // 2, blocks % 2
        lines = (_LINES + 4 * (2 * pairs + single) - 1) // (4 * (2 * pairs + single)) * 4
        ahead = later
        for half in range(2 if pairs else 0):
            columns = Walk(weight + half * 2 * _ROW, _PANEL_ROW, _ROW, _PANEL_STEP)
            for pair in range(pairs):
                here = Walk(x.begin + 2 * pair * x.beside, x.row, x.beside, x.step)
                at = part.place + (2 * pair * TILE_ROWS * 2 + half) * _HALF
                place = data_of(sums) + at * 4
                two(here, columns, place, _PANEL_ROW, steps, part.fresh, Ahead(ahead, lines))
                ahead += steps * lines * _ROW
        if single:
            columns = Walk(weight, _PANEL_ROW, _ROW, _PANEL_STEP)
            here = Walk(x.begin + 2 * pairs * x.beside, x.row, x.beside, x.step)
            place = data_of(sums) + (part.place + 2 * pairs * TILE_ROWS * WIDTH) * 4
            one(here, columns, place, _PANEL_ROW, steps, part.fresh, Ahead(ahead, lines))
        if part.complete:
            write_sums(b, part.row, part.rows, part.output, WIDTH, sums, part.place)

    @compiled
    def multiply_item(b: Any, x: Walk, item: Item, following: int, sums: Any) -> None:
        """A slice of x @ some panels, block after block of inputs, so that a block of x serves all
        panels. `following` is the panel that this thread multiplies next.
        """
        steps, size = b.padded // STEP, b.padded // STEP * _PANEL_STEP
        weight, begin = data_of(b.weight), item.row // TILE_ROWS * x.beside + x.begin
        depth = _depth(steps)
        for first in range(0, steps, depth):
            now = min(depth, steps - first)
            here = Walk(begin + first * x.step, x.row, x.beside, x.step)
            for panel in range(item.panels):
                block = weight + (item.panel + panel) * size + first * _PANEL_STEP
                if panel + 1 < item.panels:
                    later = block + size
                elif first + now < steps:
                    later = weight + item.panel * size + (first + now) * _PANEL_STEP
                else:
                    later = weight + following * size
                part = Part(
                    panel * SLICE * WIDTH,
                    item.row,
                    item.rows,
                    (item.panel + panel) * WIDTH,
                    int(first == 0),
                    int(first + now == steps),
                )
                multiply_block(b, here, block, sums, part, now, later)

    def kernel(address: Any) -> None:
        """One thread: take items until none is left."""
        b = read(address)
        x, sums = tiles_of_x(b), _room_for_sums()
        configure(min(b.rows, TILE_ROWS))
        own, count = own_run(b), num_items(b)
        index = take_item(b, own)
        while index < count:
            item, index = item_at(b, index), take_item(b, own)
            multiply_item(b, x, item, item_at(b, index).panel, sums)
        release_tiles()

    kernel.__name__ = "multiply_tiles_bfloat16" if bfloat16 else "multiply_tiles_float32"
    return kernel

"""Attention in bfloat16 with the processor's tiles (AMX), which multiply 16 query rows at a time;
see `kernels.cpu.amx` for the instructions.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any

from radixserve.kernels.cpu.amx import (
    STEP,
    TILE_ROWS,
    Ahead,
    Walk,
    configure,
    multiply_tiles,
    release_tiles,
)
from radixserve.kernels.cpu.attention.bfloat16 import MOST_ROWS, TileScratch, means_of
from radixserve.kernels.cpu.attention.block import AttentionBlock
from radixserve.kernels.cpu.attention.kernel import attend
from radixserve.kernels.cpu.attention.work import TILE
from radixserve.kernels.cpu.compile import compiled, data_of
from radixserve.kernels.cpu.vector import fma

assert MOST_ROWS == TILE_ROWS

_ROW = 64  # bytes of a row of a tile
_WORD = 4  # bytes
_four, _two = multiply_tiles(1, 4, 1), multiply_tiles(1, 2, 1)


@compiled
def _multiply_queries(scratch: TileScratch, first: int, count: int) -> None:
    """As `bfloat16.means_of` says, always for 16 rows."""
    steps = scratch.keys.shape[0] // TILE * 2 // STEP
    row = steps * _ROW  # bytes of a query
    queries = Walk(data_of(scratch.queries) + first * row, row, 0, _ROW)
    words = TILE * _WORD
    keys = Walk(data_of(scratch.keys), words, _ROW, STEP // 2 * words)
    _four(queries, keys, data_of(scratch.scores), words, steps, 1, Ahead(0, 0))


@compiled
def _multiply_shares(scratch: TileScratch, target: int) -> None:
    """The rows [16, v_dim] at the address `target` = shares @ values."""
    words = scratch.values.shape[0] // (TILE // 2) * _WORD
    shares = Walk(data_of(scratch.shares), 2 * TILE, 0, _ROW)
    for column in range(0, words, 4 * _ROW):
        values = Walk(data_of(scratch.values) + column, words, _ROW, STEP // 2 * words)
        if words - column >= 4 * _ROW:
            _four(shares, values, target + column, words, TILE // STEP, 1, Ahead(0, 0))
        else:
            _two(shares, values, target + column, words, TILE // STEP, 1, Ahead(0, 0))


@compiled
def _add_products(scratch: TileScratch, first: int, count: int) -> None:
    """Add the tile's products to the sums of V of rows [first, first + count)."""
    width = scratch.products.shape[0] // TILE_ROWS
    for r in range(count):
        sums = scratch.sums.values[(first + r) * width :][:width]
        product = scratch.products[r * width :][:width]
        old, new = scratch.old[r], scratch.new[r]
        for d in range(width):
            sums[d] = fma(product[d], new, sums[d] * old)


@compiled
def _add_values(scratch: TileScratch, first: int, count: int, fresh: bool) -> None:
    """As `bfloat16.means_of` says."""
    if fresh:
        width = scratch.products.shape[0] // TILE_ROWS
        _multiply_shares(scratch, data_of(scratch.sums.values) + first * width * _WORD)
    else:
        _multiply_shares(scratch, data_of(scratch.products))
        _add_products(scratch, first, count)


_TILES = means_of(_multiply_queries, _add_values, special=False)
_SPECIAL_TILES = means_of(_multiply_queries, _add_values, special=True)


def work(address: Any) -> None:
    """The kernel for activations and K/V in bfloat16, for processors with AMX. It is called as
    those of `kernel.work_of` are.
    """
    configure(TILE_ROWS)
    attend(_TILES, AttentionBlock.read_bfloat16(address))
    release_tiles()


def special_work(address: Any) -> None:
    """`work` for layers that are not plain."""
    configure(TILE_ROWS)
    attend(_SPECIAL_TILES, AttentionBlock.read_bfloat16(address))
    release_tiles()

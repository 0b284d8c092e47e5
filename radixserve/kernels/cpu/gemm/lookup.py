"""Looks up rows of a packed weight [out, in], as an embedding does, in whichever form the weight is
kept.

A model whose output layer shares its weight with the embedding then needs that weight only once.
The layouts are those that `panels` and `formats` describe. Knows nothing of models.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import types

from radixserve.kernels.cpu import native, threads
from radixserve.kernels.cpu.block import Block, Float32s, Int, Int64s, Numbers
from radixserve.kernels.cpu.compile import compiled, data_of, halves_at, on_stack
from radixserve.kernels.cpu.gemm.decoding import unit_decoder
from radixserve.kernels.cpu.gemm.formats import UNIT, Format
from radixserve.kernels.cpu.gemm.panel_products import WIDTH
from radixserve.kernels.cpu.gemm.panels import FLOAT_BITS, Panels
from radixserve.kernels.cpu.vector import add_atomically, number_at, put_number

_ENOUGH = 1 << 15  # values, from which on waking other threads is worth it


class LookupBlock(Block):
    """out = weight[ids]."""

    weight: Float32s  # the panels, as words of 4 bytes whatever they hold
    ids: Int64s  # [rows]
    out: Numbers  # [rows * inputs]
    counter: Int64s  # [1]
    inputs: Int
    padded: Int  # inputs in `weight`
    bits: Int  # of a number of the weight


class Lookup:
    """The rows of one packed weight. One call at a time: calls share a counter."""

    def __init__(self, panels: Panels, dtype: torch.dtype) -> None:
        """`dtype` is that of the rows it gives, float32 or bfloat16."""
        self._panels, self._dtype = panels, dtype
        self._counter = np.zeros(1, np.int64)
        self._block = LookupBlock(
            weight=panels.memory,
            counter=self._counter,
            inputs=panels.shape[1],
            padded=panels.padded,
            bits=panels.bits,
        )
        self._address = native.address(_kernel(panels.format, dtype == torch.bfloat16))

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows [..., in] whose numbers are `ids` [...].

        Raises:
            IndexError: there is no such row.
        """
        outputs, inputs = self._panels.shape
        flat = ids.reshape(-1).to(torch.int64).contiguous()
        if len(flat) and not (int(flat.min()) >= 0 and int(flat.max()) < outputs):
            raise IndexError(f"the weight has {outputs:,} rows")
        out = torch.empty(len(flat), inputs, dtype=self._dtype)
        self._block.set(ids=flat, out=out)
        self._counter[0] = 0
        threads.run(self._address, self._block.address, out.numel() >= _ENOUGH)
        return out.view(*ids.shape, inputs)


@compiled
def _copy_floats(b: Any, panel: int, lane: int, to: int) -> None:
    """Copy a row of a weight in float32."""
    begin = panel * b.padded * WIDTH + lane
    for i in range(b.inputs):
        put_number(b.out, to + i, b.weight[begin + i * WIDTH])


@compiled
def _copy_halves(b: Any, panel: int, lane: int, to: int) -> None:
    """Copy a row of a weight in bfloat16; pairs of inputs lie together."""
    halves = halves_at(data_of(b.weight), 2 * len(b.weight))
    begin = panel * b.padded * WIDTH + 2 * lane
    for i in range(b.inputs):
        put_number(b.out, to + i, number_at(halves, begin + i // 2 * 2 * WIDTH + i % 2))


@cache
def _kernel(format: Format | None, bfloat16: bool) -> Callable[[Any], None]:
    """The kernel for a weight of floats, or in a format, and for rows of float32 or bfloat16. Every
    thread calls it with the address of a `LookupBlock`. `native` compiles it.
    """
    read = LookupBlock.read_bfloat16 if bfloat16 else LookupBlock.read
    copy_row = _copy_row if format is None else _row_decoder(format)

    def look_up(address: Any) -> None:
        b = read(address)
        row = add_atomically(b.counter, 0, 1)
        while row < len(b.ids):
            panel, lane, to = b.ids[row] // WIDTH, b.ids[row] % WIDTH, row * b.inputs
            copy_row(b, panel, lane, to)
            row = add_atomically(b.counter, 0, 1)

    names = ["" if format is None else f"_{format.name}", "_bfloat16" if bfloat16 else ""]
    look_up.__name__ = "look_up" + "".join(names)
    return look_up


@compiled
def _copy_row(b: Any, panel: int, lane: int, to: int) -> None:
    """Copy a row of a weight of floats."""
    if b.bits == FLOAT_BITS:
        _copy_floats(b, panel, lane, to)
    else:
        _copy_halves(b, panel, lane, to)


def _row_decoder(format: Format) -> Any:
    """A function for compiled code that decodes a row: with those of its panel, because all of them
    lie together.
    """
    decode = unit_decoder(format)
    room_for_values = on_stack(types.float32, UNIT * WIDTH)

    @compiled
    def decode_row(b: Any, panel: int, lane: int, to: int) -> None:
        units, values = b.inputs // UNIT, room_for_values()
        for unit in range(units):
            decode(b.weight, panel, units, unit, values)
            for i in range(UNIT):
                put_number(b.out, to + unit * UNIT + i, values[i * WIDTH + lane])

    return decode_row

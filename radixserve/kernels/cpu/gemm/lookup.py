"""Looks up rows of a packed weight [out, in], as an embedding does, in whichever form the weight is
kept.

A model whose output layer shares its weight with the embedding then needs that weight only once.
The layouts are those that `panels` and `quantised` describe. Knows nothing of models.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from radixserve.kernels.cpu import native, threads
from radixserve.kernels.cpu.block import Block, Float32s, Int, Int64s, Numbers
from radixserve.kernels.cpu.compile import compiled, data_of, halves_at, words_at
from radixserve.kernels.cpu.gemm.panel_products import WIDTH
from radixserve.kernels.cpu.gemm.panels import BFLOAT_BITS, FLOAT_BITS, Panels
from radixserve.kernels.cpu.gemm.quantised_products import GROUP, record_size
from radixserve.kernels.cpu.vector import add_atomically, fma, number_at, put_number

_WORD = 32  # bits
_ONE = np.float32(1)
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
        kernel = look_up_bfloat16 if dtype == torch.bfloat16 else look_up
        self._address = native.address(kernel)

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


@compiled
def _decode_row(b: Any, panel: int, lane: int, to: int) -> None:
    """Decode a row of a weight in codes."""
    bits, words = b.bits, words_at(data_of(b.weight), len(b.weight))
    size = record_size(bits)
    begin = panel * (b.padded // GROUP) * size + lane
    count, mask = np.float32(1 << bits), np.uint32((1 << bits) - 1)
    for i in range(b.inputs):
        record, bit = begin + i // GROUP * size, i % GROUP * bits
        word = words[record + (2 + bit // _WORD) * WIDTH]
        code = np.float32((word >> np.uint32(bit % _WORD)) & mask)
        value = fma(b.weight[record], _ONE + code / count, b.weight[record + WIDTH])
        put_number(b.out, to + i, value)


@compiled
def _work(b: Any) -> None:
    """One thread: take rows until none is left."""
    row = add_atomically(b.counter, 0, 1)
    while row < len(b.ids):
        panel, lane, to = b.ids[row] // WIDTH, b.ids[row] % WIDTH, row * b.inputs
        if b.bits == FLOAT_BITS:
            _copy_floats(b, panel, lane, to)
        elif b.bits == BFLOAT_BITS:
            _copy_halves(b, panel, lane, to)
        else:
            _decode_row(b, panel, lane, to)
        row = add_atomically(b.counter, 0, 1)


def look_up(address: Any) -> None:
    """Every thread calls this with the address of a `LookupBlock`. `native` compiles it."""
    _work(LookupBlock.read(address))


def look_up_bfloat16(address: Any) -> None:
    """`look_up` for rows of bfloat16."""
    _work(LookupBlock.read_bfloat16(address))

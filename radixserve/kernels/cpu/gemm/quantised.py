"""Quantised weights without loss: a weight of floats in as few bytes as its values need, as codes
of 4 or 8 bits on a grid for each 32 inputs.

A checkpoint that was quantised and then stored as float32 holds few different values: within 32
inputs of one output all are `minimum + scale * code`, rounded once. If that formula gives back
every value of a weight, bit for bit, the weight is kept as codes (`formats.grid`), in 6 or 10 bits
a value. A decode step, which spends nearly all its time on reading weights, reads those. If it does
not give back every value, no codes are kept. Knows nothing of how rows are multiplied.

    values of one output    -3.0  -1.5   0.0   1.5  ...      scale 1.5, minimum -3.0
    codes                      0     1     2     3  ...
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import types

from radixserve.kernels.cpu import native, threads
from radixserve.kernels.cpu.block import Block, Float32s, Int, Int64s, UInt8s
from radixserve.kernels.cpu.compile import compiled, on_stack
from radixserve.kernels.cpu.gemm.codes import Codes, Packing
from radixserve.kernels.cpu.gemm.formats import UNIT, grid
from radixserve.kernels.cpu.gemm.panel_products import WIDTH
from radixserve.kernels.cpu.vector import add_atomically, fma

_TO_11_BITS = np.float32(1 << 13 | 1)  # the factor that splits a float32 behind its 11th bit
_ZERO = np.float32(0)
_room_for_values = on_stack(types.float32, UNIT)


class EncodeBlock(Block):
    """scales, minimums, codes = those of a weight."""

    weight: Float32s  # [outputs * inputs], row by row
    codes: UInt8s  # [outputs * inputs]
    scales: Float32s  # [outputs * units]
    minimums: Float32s  # the same
    taken: Int64s  # [1]: how many panels threads have taken
    failed: Int64s  # [1]: 1 once a unit fits no grid
    inputs: Int
    bits: Int  # of a code


def packed_codes(weight: torch.Tensor) -> Packing | None:
    """The codes of a weight [out, in], contiguous float32; None if its values need more than 8
    bits, or if it has no whole panels and units.

    Cost: some 10 ns per value and thread for a weight that is on a grid; next to nothing for
    others, because the first unit that fits no grid ends the search.
    """
    outputs, inputs = weight.shape
    if outputs % WIDTH or inputs % UNIT:
        return None
    for bits in (4, 8):
        # The first panel alone is tried first, so that hardly ever memory is taken in vain.
        if _codes(weight[:WIDTH], bits) is not None:
            codes = _codes(weight, bits)
            if codes is not None:
                packing = Packing(grid(bits), (outputs, inputs))
                packing.put(0, codes)
                return packing
    return None


def _codes(weight: torch.Tensor, bits: int) -> Codes | None:
    """The codes of a weight if all of it is on a grid."""
    rows, inputs = weight.shape
    taken, failed = np.zeros(1, np.int64), np.zeros(1, np.int64)
    codes = np.empty((rows, inputs), np.uint8)
    scales, minimums = (np.empty((rows, inputs // UNIT), np.float32) for _ in range(2))
    block = EncodeBlock(weight=weight, inputs=inputs, bits=bits, taken=taken, failed=failed)
    block.set(codes=codes.reshape(-1))
    block.set(scales=scales.reshape(-1), minimums=minimums.reshape(-1))
    threads.run(native.address(encode), block.address, True)
    return None if failed[0] else Codes(codes, scales, minimums)


@compiled
def _on_grid(values: Any, low: Any, step: Any, codes: Any, at: int) -> bool:
    """Whether the grid low, low + step, ... gives back every value, bit for bit. Writes the values'
    codes to `codes` from element `at` on.
    """
    for i in range(UNIT):
        code = np.rint((values[i] - low) / step) if step > _ZERO else _ZERO
        value = fma(step, code, low)
        if value != values[i] or np.signbit(value) != np.signbit(values[i]):  # a zero has a sign
            return False
        codes[at + i] = np.uint8(code)
    return True


@compiled
def _find_step(values: Any, low: Any, high: Any, bits: int, codes: Any, at: int) -> Any:
    """The step of a grid of at most 2**bits values from `low` to `high` that holds all values;
    negative if there is none.

    It tries the largest possible number of steps between the smallest and the largest value first,
    then fewer. Each step is tried rounded to 11 bits, as one that was stored in half precision has
    (with T. J. Dekker's splitting), and as computed.
    """
    width = high - low
    for steps in range((1 << bits) - 1, 0, -1):
        step = width / np.float32(steps)
        split = step * _TO_11_BITS
        for candidate in (split - (split - step), step):
            if _on_grid(values, low, candidate, codes, at):
                return candidate
    return np.float32(-1)


@compiled
def _encode_unit(b: Any, unit: int) -> bool:
    """Encode UNIT inputs of an output. False if their values fit no grid."""
    at, values = unit * UNIT, _room_for_values()
    low = high = b.weight[at]
    for i in range(UNIT):
        values[i] = b.weight[at + i]
        low, high = min(low, values[i]), max(high, values[i])
    step = _find_step(values, low, high, b.bits, b.codes, at)
    b.scales[unit], b.minimums[unit] = step, low
    return bool(step >= _ZERO)


@compiled
def _encode(b: Any) -> None:
    """One thread: take panels until none is left, or until a unit fits no grid."""
    panels, of_panel = len(b.weight) // (b.inputs * WIDTH), WIDTH * b.inputs // UNIT
    panel = add_atomically(b.taken, 0, 1)
    while panel < panels and b.failed[0] == 0:
        for unit in range(panel * of_panel, (panel + 1) * of_panel):
            if not _encode_unit(b, unit):
                b.failed[0] = 1
                break
        panel = add_atomically(b.taken, 0, 1)


def encode(address: Any) -> None:
    """Every thread calls this with the address of an `EncodeBlock`. `native` compiles it."""
    _encode(EncodeBlock.read(address))

"""Quantised weights without loss: a weight in as few bytes as its values need, as codes of 4 or 8
bits on a grid for each 32 inputs.

A checkpoint that was quantised and then stored as float32 holds few different values: within 32
inputs of one output all are `offset + scale * code`, rounded once. If that formula gives back every
value of a weight, bit for bit, the weight is kept as codes, in 6 or 10 bits a value. A decode step,
which spends nearly all its time on reading weights, reads those. If it does not give back every
value, no codes are kept. Knows nothing of how rows are multiplied.

A panel of 64 outputs is one record for each 32 inputs: 64 scales, 64 offsets, and rows of 64 int32
with the codes of some consecutive inputs, the first in the lowest bits. So that decoding takes
three instructions, the stored scale is that of `1 + code / 2**bits`, a float with the code as the
highest bits of its fraction, and the stored offset belongs to it.

    values of one output    -3.0  -1.5   0.0   1.5  ...      step 1.5, lowest value -3.0
    codes (4 bits)             0     1     2     3  ...
    stored scale, offset    24 = 1.5 * 16 and -27 = -3.0 - 24:  -27 + 24 * (1 + 2 / 16) = 0.0
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import types

from radixserve.kernels.cpu import native, threads
from radixserve.kernels.cpu.block import Block, Float32s, Int, Int64s
from radixserve.kernels.cpu.compile import compiled, data_of, on_stack, words_at
from radixserve.kernels.cpu.gemm.panel_products import WIDTH
from radixserve.kernels.cpu.gemm.quantised_products import GROUP, record_size
from radixserve.kernels.cpu.pages import empty
from radixserve.kernels.cpu.vector import add_atomically, fma

_WORD = 32  # bits
_TO_11_BITS = np.float32(1 << 13 | 1)  # the factor that splits a float32 behind its 11th bit
_ZERO, _ONE = np.float32(0), np.float32(1)
_room_for_values, _room_for_codes = on_stack(types.float32, GROUP), on_stack(types.uint32, GROUP)


class EncodeBlock(Block):
    """records = the codes of a weight."""

    weight: Float32s  # [outputs * inputs], row by row
    records: Float32s  # [groups * record_size(bits)]
    taken: Int64s  # [1]: how many groups threads have taken
    failed: Int64s  # [1]: 1 once a group fits no grid
    inputs: Int
    bits: Int  # of a code


@dataclass(frozen=True, slots=True)
class Codes:
    """One weight [out, in] as records, in the order of panels, then of inputs."""

    records: torch.Tensor  # float32, flat
    bits: int  # of a code: 4 or 8

    @classmethod
    def of(cls, weight: torch.Tensor) -> Codes | None:
        """The codes of a weight [out, in], contiguous float32; None if its values need more than 8
        bits, or if it has no whole panels and groups.

        Cost: some 10 ns per value and thread for a weight that is on a grid; next to nothing for
        others, because the first group that fits no grid ends the search.
        """
        outputs, inputs = weight.shape
        if outputs % WIDTH or inputs % GROUP:
            return None
        for bits in (4, 8):
            # The first panel alone is tried first, so that hardly ever memory is taken in vain.
            if cls._room(WIDTH, inputs, bits)._filled(weight[:WIDTH]):
                codes = cls._room(outputs, inputs, bits)
                if codes._filled(weight):
                    return codes
        return None

    @classmethod
    def _room(cls, outputs: int, inputs: int, bits: int) -> Codes:
        """Memory for the codes of a weight, which holds anything."""
        return cls(empty(outputs // WIDTH * (inputs // GROUP) * record_size(bits)), bits)

    def _filled(self, weight: torch.Tensor) -> bool:
        """Encode `weight` into `records`; whether all of it is on a grid."""
        taken, failed = np.zeros(1, np.int64), np.zeros(1, np.int64)
        inputs = weight.shape[1]
        block = EncodeBlock(weight=weight, records=self.records, inputs=inputs, bits=self.bits)
        block.set(taken=taken, failed=failed)
        threads.run(native.address(encode), block.address, True)
        return not failed[0]


@compiled
def _on_grid(values: Any, low: Any, step: Any, count: Any, codes: Any) -> bool:
    """Whether the grid low, low + step, ... of `count` values gives back every value, bit for bit.
    Writes the values' codes to `codes`.
    """
    scale = step * count
    for i in range(GROUP):
        code = np.rint((values[i] - low) / step) if step > _ZERO else _ZERO
        value = fma(scale, _ONE + code / count, low - scale)
        if value != values[i] or np.signbit(value) != np.signbit(values[i]):  # a zero has a sign
            return False
        codes[i] = np.uint32(code)
    return True


@compiled
def _find_step(values: Any, low: Any, high: Any, count: Any, codes: Any) -> Any:
    """The step of a grid of at most `count` values from `low` to `high` that holds all values;
    negative if there is none.

    It tries the largest possible number of steps between the smallest and the largest value first,
    then fewer. Each step is tried rounded to 11 bits, as one that was stored in half precision has
    (with T. J. Dekker's splitting), and as computed.
    """
    width = high - low
    for steps in range(np.int64(count) - 1, 0, -1):
        step = width / np.float32(steps)
        split = step * _TO_11_BITS
        for candidate in (split - (split - step), step):
            if _on_grid(values, low, candidate, count, codes):
                return candidate
    return np.float32(-1)


@compiled
def _encode_group(b: Any, group: int) -> bool:
    """Encode GROUP inputs of a panel's outputs as one record. False if the values of an output fit
    no grid.
    """
    weight, out, groups = b.weight, b.records, b.inputs // GROUP
    begin = group // groups * WIDTH * b.inputs + group % groups * GROUP
    to = group * record_size(b.bits)
    words = words_at(data_of(out), len(out))
    values, codes, per_word = _room_for_values(), _room_for_codes(), _WORD // b.bits
    count = np.float32(1 << b.bits)
    for lane in range(WIDTH):
        at = begin + lane * b.inputs
        low = high = weight[at]
        for i in range(GROUP):
            values[i] = weight[at + i]
            low, high = min(low, values[i]), max(high, values[i])
        step = _find_step(values, low, high, count, codes)
        if not step >= _ZERO:
            return False
        out[to + lane], out[to + WIDTH + lane] = step * count, low - step * count
        for row in range(GROUP // per_word):
            word = np.uint32(0)
            for i in range(per_word):
                word |= codes[row * per_word + i] << np.uint32(i * b.bits)
            words[to + (2 + row) * WIDTH + lane] = word
    return True


@compiled
def _encode(b: Any) -> None:
    """One thread: take groups until none is left, or until a group fits no grid."""
    groups = len(b.weight) // (GROUP * WIDTH)
    group = add_atomically(b.taken, 0, 1)
    while group < groups and b.failed[0] == 0:
        if not _encode_group(b, group):
            b.failed[0] = 1
        group = add_atomically(b.taken, 0, 1)


def encode(address: Any) -> None:
    """Every thread calls this with the address of an `EncodeBlock`. `native` compiles it."""
    _encode(EncodeBlock.read(address))

"""Multiplies a few rows by a packed weight at the speed of memory, with the bits of oneDNN's own operator.

oneDNN's operator reads packed weights at half of what memory gives when there are few rows, and a decode step of few
sequences is little else than reading weights. With AVX-512 it packs a weight [out, in] as panels of 64 outputs, in
rows of one input each, and sums each output as chains of fused multiply-adds over some hundreds of inputs, chain added
to chain. This kernel does the same on the same memory. Neither is documented: `FewRows.like` finds the length of a
chain by comparing bits, and gives up where none of the usual ones agrees. Knows nothing of layers.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray

from radixserve.model import native, team
from radixserve.model.lanes import PANEL, add_atomically, pointer
from radixserve.model.products import WIDTH, panel_1, panel_2, panel_3, panel_4, panel_5, panel_6
from radixserve.model.step_block import compiled

FEW = 48
"""Rows up to which this kernel is the faster one."""

_CHAINS = (1024, 512, 256, 2048, 1 << 30)  # inputs
_FITS = PANEL * 2 == WIDTH  # six rows of a panel in registers
_GROUP = 6  # rows
_TESTED = (*range(1, 2 * _GROUP + 1), FEW)  # every number of rows in a first and in a last group
_DEPTH = 64  # inputs of a block: with 64 outputs half of the first-level cache
_ZERO = np.float32(0)
_X, _WEIGHT, _BIAS, _OUT, _COUNTER, _ROWS, _IN, _OUTPUTS, _CHAIN, _HAS_BIAS, _LENGTH = range(11)


class FewRows:
    """One packed weight, read by our kernel. Not for concurrent use with itself."""

    def __init__(self, packed: torch.Tensor, bias: torch.Tensor | None, shape: tuple[int, int], chain: int) -> None:
        """`packed` and `bias` must outlive this; `shape` is (out, in), `chain` the inputs of one chain."""
        self._counter = np.zeros(1, np.int64)
        self._block = np.zeros(_LENGTH, np.int64)
        self._block[_WEIGHT] = torch.ops.mkldnn.data_ptr(packed)
        self._block[_COUNTER] = self._counter.ctypes.data
        self._block[[_OUTPUTS, _IN]] = shape
        self._block[_CHAIN] = chain
        if bias is not None:
            self._block[[_BIAS, _HAS_BIAS]] = bias.data_ptr(), 1
        self._address = self._block.ctypes.data
        self.chain = chain

    @classmethod
    def like(
        cls, packed: torch.Tensor, bias: torch.Tensor | None, shape: tuple[int, int], x: torch.Tensor, y: torch.Tensor
    ) -> FewRows | None:
        """The one that gives exactly `y` [rows, out] for `x` [rows, in]; None where there is none."""
        if not _FITS or shape[0] % WIDTH or not _is_plain(packed, shape):
            return None
        for chain in _CHAINS:
            kernel = cls(packed, bias, shape, chain)
            if all(torch.equal(kernel(x[:rows]), y[:rows]) for rows in _TESTED):
                return kernel
        return None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, out] of x [rows, in], contiguous, of at most FEW rows."""
        assert x.is_contiguous(), "the kernel reads flat memory"
        block, out = self._block, torch.empty(len(x), int(self._block[_OUTPUTS]))
        block[_X], block[_OUT], block[_ROWS] = x.data_ptr(), out.data_ptr(), len(x)
        self._counter[0] = 0
        team.run(native.address(multiply), self._address, True)
        return out


def _is_plain(packed: torch.Tensor, shape: tuple[int, int]) -> bool:
    """Whether the packed weight lies in memory without padding, and where it lies can be asked for."""
    try:
        return bool(torch.ops.mkldnn._nbytes(packed) == 4 * shape[0] * shape[1])
    except (AttributeError, RuntimeError):
        return False


@compiled
def _block(b: Any, x: Any, at: int, weight: Any, wt: int, sums: Any, depth: int, ahead: int) -> None:
    """Carry on the chains of all rows over the next `depth` inputs, the weight's rows from element `wt` on."""
    rows, inputs = b[_ROWS], b[_IN]
    for row in range(0, rows, _GROUP):
        left, here, to = rows - row, at + row * inputs, row * WIDTH
        if left >= 6:
            panel_6(x, here, inputs, weight, wt, sums, to, depth, ahead)
        elif left == 5:
            panel_5(x, here, inputs, weight, wt, sums, to, depth, ahead)
        elif left == 4:
            panel_4(x, here, inputs, weight, wt, sums, to, depth, ahead)
        elif left == 3:
            panel_3(x, here, inputs, weight, wt, sums, to, depth, ahead)
        elif left == 2:
            panel_2(x, here, inputs, weight, wt, sums, to, depth, ahead)
        else:
            panel_1(x, here, inputs, weight, wt, sums, to, depth, ahead)
        ahead = 0


@compiled
def _multiply_panel(b: Any, x: Any, weight: Any, panel: int, following: int, sums: Any, total: Any) -> None:
    """total[rows, 64] = x @ one panel, block after block of inputs, while the block after that is on its way.

    `following` is the panel that this thread multiplies by next.
    """
    count, inputs, chain = b[_ROWS] * WIDTH, b[_IN], b[_CHAIN]
    total[:count], sums[:count] = _ZERO, _ZERO
    begin, after = panel * inputs * WIDTH, following * inputs * WIDTH
    for first in range(0, inputs, _DEPTH):
        stop = min(first + _DEPTH, inputs)
        wt = begin + first * WIDTH
        ahead = (begin + stop * WIDTH if stop < inputs else after) - wt
        _block(b, x, first, weight, wt, sums, stop - first, ahead)
        if stop == inputs or stop % chain == 0:
            for i in range(count):
                total[i] = sums[i] if stop <= chain else total[i] + sums[i]
                sums[i] = _ZERO


@compiled
def _write(b: Any, panel: int, total: Any, bias: Any, out: Any) -> None:
    for row in range(b[_ROWS]):
        target = out[row * b[_OUTPUTS] + panel * WIDTH :][:WIDTH]
        source = total[row * WIDTH :][:WIDTH]
        for j in range(WIDTH):
            target[j] = source[j] + bias[panel * WIDTH + j] if b[_HAS_BIAS] else source[j]


@compiled
def _work(b: Any) -> None:
    """One thread: take panels until none is left."""
    rows, inputs, outputs = b[_ROWS], b[_IN], b[_OUTPUTS]
    x = carray(pointer(b[_X]), rows * inputs, np.float32)
    weight = carray(pointer(b[_WEIGHT]), outputs * inputs, np.float32)
    bias = carray(pointer(b[_BIAS]), outputs, np.float32)
    out = carray(pointer(b[_OUT]), rows * outputs, np.float32)
    counter = carray(pointer(b[_COUNTER]), 1, np.int64)
    sums, total = np.empty(rows * WIDTH, np.float32), np.empty(rows * WIDTH, np.float32)
    panel = add_atomically(counter, 0, 1)
    while panel < outputs // WIDTH:
        following = add_atomically(counter, 0, 1)
        _multiply_panel(b, x, weight, panel, following, sums, total)
        _write(b, panel, total, bias, out)
        panel = following


def multiply(address: Any) -> None:
    """What every thread calls with the address of a block as `FewRows` fills it; compiled by `native`."""
    _work(carray(address, _LENGTH, np.int64))

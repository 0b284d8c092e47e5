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
from radixserve.model.lanes import (
    PANEL,
    add_atomically,
    panel_1,
    panel_2,
    panel_3,
    panel_4,
    panel_6,
    pointer,
)
from radixserve.model.step_block import compiled

FEW = 8
"""Rows up to which this kernel is the faster one."""

_WIDTH = 64  # outputs of a panel
_CHAINS = (1024, 512, 256, 2048, 1 << 30)  # inputs
_FITS = PANEL * 2 == _WIDTH  # four rows of a panel in registers
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
        if not _FITS or shape[0] % _WIDTH or not _is_plain(packed, shape):
            return None
        for chain in _CHAINS:
            kernel = cls(packed, bias, shape, chain)
            if all(torch.equal(kernel(x[:rows]), y[:rows]) for rows in range(1, FEW + 1)):
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
def _chain(rows: int, x: Any, at: int, inputs: int, weight: Any, wt: int, sums: Any, to: int, depth: int) -> None:
    """sums[r, 0:64] = x[r, 0:depth] @ the weight's rows from element `wt` on, for up to six rows but five."""
    if rows == 1:
        panel_1(x, at, inputs, weight, wt, _WIDTH, sums, to, _WIDTH, depth)
    elif rows == 2:
        panel_2(x, at, inputs, weight, wt, _WIDTH, sums, to, _WIDTH, depth)
    elif rows == 3:
        panel_3(x, at, inputs, weight, wt, _WIDTH, sums, to, _WIDTH, depth)
    elif rows == 4:
        panel_4(x, at, inputs, weight, wt, _WIDTH, sums, to, _WIDTH, depth)
    else:
        panel_6(x, at, inputs, weight, wt, _WIDTH, sums, to, _WIDTH, depth)


@compiled
def _multiply_panel(b: Any, x: Any, weight: Any, panel: int, sums: Any, total: Any) -> None:
    """total[rows, 64] = x @ one panel: chain after chain, each for all rows while its weights are in the cache."""
    rows, inputs, chain = b[_ROWS], b[_IN], b[_CHAIN]
    group = rows if rows <= 6 and rows != 5 else (rows + 1) // 2
    for first in range(0, inputs, chain):
        depth = min(chain, inputs - first)
        for row in range(0, rows, group):
            at, wt = row * inputs + first, (panel * inputs + first) * _WIDTH
            _chain(min(group, rows - row), x, at, inputs, weight, wt, sums, row * _WIDTH, depth)
        for i in range(rows * _WIDTH):
            total[i] = sums[i] if first == 0 else total[i] + sums[i]


@compiled
def _write(b: Any, panel: int, total: Any, bias: Any, out: Any) -> None:
    for row in range(b[_ROWS]):
        target = out[row * b[_OUTPUTS] + panel * _WIDTH :][:_WIDTH]
        source = total[row * _WIDTH :][:_WIDTH]
        for j in range(_WIDTH):
            target[j] = source[j] + bias[panel * _WIDTH + j] if b[_HAS_BIAS] else source[j]


@compiled
def _work(b: Any) -> None:
    """One thread: take panels until none is left."""
    rows, inputs, outputs = b[_ROWS], b[_IN], b[_OUTPUTS]
    x = carray(pointer(b[_X]), rows * inputs, np.float32)
    weight = carray(pointer(b[_WEIGHT]), outputs * inputs, np.float32)
    bias = carray(pointer(b[_BIAS]), outputs, np.float32)
    out = carray(pointer(b[_OUT]), rows * outputs, np.float32)
    counter = carray(pointer(b[_COUNTER]), 1, np.int64)
    sums, total = np.empty(rows * _WIDTH, np.float32), np.empty(rows * _WIDTH, np.float32)
    panel = add_atomically(counter, 0, 1)
    while panel < outputs // _WIDTH:
        _multiply_panel(b, x, weight, panel, sums, total)
        _write(b, panel, total, bias, out)
        panel = add_atomically(counter, 0, 1)


def multiply(address: Any) -> None:
    """What every thread calls with the address of a block as `FewRows` fills it; compiled by `native`."""
    _work(carray(address, _LENGTH, np.int64))

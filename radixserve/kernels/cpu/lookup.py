"""Looks up rows of a packed weight [out, in], as an embedding does, whether the weight is kept as
float32 or as codes.

A model whose output layer shares its weight with the embedding then needs that weight only once.
The layouts are those that `gemm` and `quantised` describe. Knows nothing of models.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from radixserve.kernels.cpu import native, threads
from radixserve.kernels.cpu.compile import address_of, compiled, floats_at, longs_at, words_at
from radixserve.kernels.cpu.products import WIDTH
from radixserve.kernels.cpu.quantised_products import GROUP, record_size
from radixserve.kernels.cpu.vector import add_atomically, fma

_WORD = 32  # bits
_ONE = np.float32(1)
_ENOUGH = 1 << 15  # values, from which on waking other threads is worth it
_WEIGHT, _IDS, _OUT, _COUNTER, _COUNT, _IN, _OUTPUTS, _STRIDE, _BITS, _LENGTH = range(10)


class Lookup:
    """The rows of one packed weight. One call at a time: calls share a counter."""

    def __init__(self, address: int, shape: tuple[int, int], bits: int) -> None:
        """`address` is that of the panels (`bits` is 0) or of the records of codes of `bits` bits.
        The memory must outlive this object. `shape` is (out, in).
        """
        self._outputs, self._inputs = shape
        self._counter = np.zeros(1, np.int64)
        self._block = np.zeros(_LENGTH, np.int64)
        self._block[[_WEIGHT, _COUNTER]] = address, self._counter.ctypes.data
        self._block[[_OUTPUTS, _IN]] = shape
        # Floats of memory that GROUP inputs of a panel take.
        self._block[_STRIDE] = record_size(bits) if bits else GROUP * WIDTH
        self._block[_BITS] = bits

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows [..., in] whose numbers are `ids` [...].

        Raises:
            IndexError: there is no such row.
        """
        flat = ids.reshape(-1).to(torch.int64).contiguous()
        if len(flat) and not (int(flat.min()) >= 0 and int(flat.max()) < self._outputs):
            raise IndexError(f"the weight has {self._outputs:,} rows")
        out = torch.empty(len(flat), self._inputs)
        self._block[[_IDS, _OUT, _COUNT]] = flat.data_ptr(), out.data_ptr(), len(flat)
        self._counter[0] = 0
        threads.run(native.address(look_up), self._block.ctypes.data, out.numel() >= _ENOUGH)
        return out.view(*ids.shape, self._inputs)


@compiled
def _copy_row(b: Any, weight: Any, begin: int, target: Any) -> None:
    """Copy the row whose first value is element `begin` of a weight in float32."""
    for i in range(b[_IN]):
        target[i] = weight[begin + i * WIDTH]


@compiled
def _decode_row(b: Any, weight: Any, words: Any, begin: int, target: Any) -> None:
    """Decode the row whose first scale is element `begin` of a weight in codes."""
    bits = b[_BITS]
    count, mask = np.float32(1 << bits), np.uint32((1 << bits) - 1)
    for i in range(b[_IN]):
        record, bit = begin + i // GROUP * b[_STRIDE], i % GROUP * bits
        word = words[record + (2 + bit // _WORD) * WIDTH]
        code = np.float32((word >> np.uint32(bit % _WORD)) & mask)
        target[i] = fma(weight[record], _ONE + code / count, weight[record + WIDTH])


@compiled
def _work(b: Any) -> None:
    """One thread: take rows until none is left."""
    inputs, count = b[_IN], b[_COUNT]
    size = b[_OUTPUTS] * inputs * b[_STRIDE] // (GROUP * WIDTH)
    weight, words = floats_at(b[_WEIGHT], size), words_at(b[_WEIGHT], size)
    ids, out = longs_at(b[_IDS], count), floats_at(b[_OUT], count * inputs)
    counter = longs_at(b[_COUNTER], 1)
    row = add_atomically(counter, 0, 1)
    while row < count:
        panel, lane = ids[row] // WIDTH, ids[row] % WIDTH
        begin, target = panel * inputs * b[_STRIDE] // GROUP + lane, out[row * inputs :][:inputs]
        if b[_BITS] == 0:
            _copy_row(b, weight, begin, target)
        else:
            _decode_row(b, weight, words, begin, target)
        row = add_atomically(counter, 0, 1)


def look_up(address: Any) -> None:
    """Every thread calls this with the address of an argument block, as `Lookup` fills it. `native`
    compiles it.
    """
    _work(longs_at(address_of(address), _LENGTH))

"""How the row-wise parts of a decoder layer are passed to compiled code: as one block of int64 with
the addresses and lengths of arrays, which `LayerBlock` writes and `read_layer` reads.

`rows` use it. Most entries stay for the whole step; a layer changes the few tensors it owns.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from radixserve.kernels.arrays import Longs
from radixserve.kernels.cpu import threads
from radixserve.kernels.cpu.compile import address_of, compiled, floats_in, longs_at, longs_in
from radixserve.tensors.kv import KVShape


class Layer(NamedTuple):
    """A layer as the kernels read it. Arrays are flat float32, except `slots` and `counter`."""

    hidden: Any  # [rows * width], the residual stream
    delta: Any  # [rows * width], what is added to it; may be empty
    weight: Any  # [width], of the norm
    normed: Any  # [rows * width]
    qkv: Any  # [rows * (heads + 2 * kv_heads) * dim]
    cos: Any  # [rows * dim]
    sin: Any
    q_weight: Any  # [dim], of the norm of a head, where the model has one; or empty
    k_weight: Any
    k: Any  # [slots * kv_heads * dim]
    v: Any
    q: Any  # [rows * heads * dim]
    gate_up: Any  # [rows * 2 * inner]
    gated: Any  # [rows * inner]
    epsilon: Any  # [1], of all norms
    slots: Any  # int64 [rows]: where K and V go
    counter: Any  # int64 [1]: groups of rows that threads have taken
    rows: Any
    heads: Any
    kv_heads: Any
    dim: Any


_NUMBERS = ("rows", "heads", "kv_heads", "dim")
_ARRAYS = Layer._fields[: -len(_NUMBERS)]
# Index in the block of each array's address; its length follows.
_PLACE = {name: 2 * index for index, name in enumerate(_ARRAYS)}
BLOCK_LENGTH = 2 * len(_ARRAYS) + len(_NUMBERS)
"""The block is int64: address and length of each array in the order of `Layer`, then the
numbers.
"""


class LayerBlock:
    """The argument block of the row-wise kernels, for all layers of a step. The tensors that it
    points to must live until the kernel has run.
    """

    def __init__(
        self, shape: KVShape, heads: int, epsilon: float, counter: Longs | None = None
    ) -> None:
        self._epsilon, self._counter = np.array([epsilon], np.float32), np.zeros(1, np.int64)
        if counter is not None:
            self._counter = counter
        self._block = np.zeros(BLOCK_LENGTH, np.int64)
        self._block[-3:] = heads, shape.kv_heads, shape.k_dim
        for name, address in (
            ("epsilon", self._epsilon.ctypes.data),
            ("counter", self._counter.ctypes.data),
        ):
            self._block[_PLACE[name] : _PLACE[name] + 2] = address, 1
        self.address = self._block.ctypes.data

    def point(self, **tensors: torch.Tensor | None) -> None:
        """Set arrays by name: contiguous, float32 (`slots`: int64). None makes an array empty."""
        for name, tensor in tensors.items():
            place = _PLACE[name]
            if tensor is None:
                self._block[place + 1] = 0
                continue
            assert tensor.is_contiguous(), "the kernels read flat memory"
            self._block[place], self._block[place + 1] = tensor.data_ptr(), tensor.numel()

    def count(self, rows: int) -> None:
        """Set the number of rows."""
        self._block[-len(_NUMBERS)] = rows

    def run(self, function: int, rows: int, parallel: bool) -> None:
        """Call the compiled function at address `function` for `rows` rows."""
        self.count(rows)
        self._counter[0] = 0
        threads.run(function, self.address, parallel)


@compiled
def read_layer(address: Any) -> Layer:
    """The layer whose block lies at `address` (compiled code only). Indices are places in
    `Layer`.
    """
    b = longs_at(address_of(address), BLOCK_LENGTH)
    n = b[BLOCK_LENGTH - len(_NUMBERS) :]
    return Layer(
        floats_in(b, 0),
        floats_in(b, 1),
        floats_in(b, 2),
        floats_in(b, 3),
        floats_in(b, 4),
        floats_in(b, 5),
        floats_in(b, 6),
        floats_in(b, 7),
        floats_in(b, 8),
        floats_in(b, 9),
        floats_in(b, 10),
        floats_in(b, 11),
        floats_in(b, 12),
        floats_in(b, 13),
        floats_in(b, 14),
        longs_in(b, 15),
        longs_in(b, 16),
        n[0],
        n[1],
        n[2],
        n[3],
    )

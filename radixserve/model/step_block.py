"""How a step crosses into compiled code: one block of addresses, lengths and numbers, written here and read here.

Addresses instead of arrays, because every thread gets one pointer and because layers differ in four tensors only.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import carray, njit

from radixserve.cache.pool import KVShape
from radixserve.model.lanes import PANEL, pointer
from radixserve.model.plan import AttentionPlan
from radixserve.model.tiles import TileWork

compiled = partial(njit, error_model="numpy", forceinline=True)

_FEW = 16  # tiles for which waking another thread costs more than it saves


class Sums(NamedTuple):
    """Weighted sums of V, with the largest score and the sum of weights they are relative to, per row."""

    values: Any  # flat
    peaks: Any
    weights: Any


class Step(NamedTuple):
    """One layer of a step; arrays are flat. `ARRAYS` and `NUMBERS` below say how they arrive."""

    q: Any  # [rows * heads * k_dim]
    k: Any  # [slots * kv_heads * k_dim]
    v: Any  # [slots * kv_heads * v_dim]
    out: Any  # [rows * heads * v_dim]
    partials: Sums  # contributions of rows whose tiles are spread over items
    scaling: Any  # [1]
    table: Any
    positions: Any
    rows: Any
    items: Any  # [items * 6]
    partial_begin: Any
    split_rows: Any
    counters: Any  # [3]: what the threads have taken and done; zero at the start
    heads: Any
    kv_heads: Any
    k_dim: Any
    v_dim: Any
    max_rows: Any


FLOATS = ("q", "k", "v", "out", "values", "peaks", "weights", "scaling")
INTS = ("table", "positions", "rows")
LONGS = ("items", "partial_begin", "split_rows", "counters")
ARRAYS = FLOATS + INTS + LONGS
NUMBERS = ("heads", "kv_heads", "k_dim", "v_dim", "max_rows")
BLOCK_LENGTH = 2 * len(ARRAYS) + len(NUMBERS)
"""A step arrives as int64: address and length of each array in the order above, then the numbers."""


class StepBlock:
    """A step as `tile_kernel` reads it. Everything but the tensors of the layer is the same for all layers."""

    def __init__(self, plan: AttentionPlan, q: torch.Tensor) -> None:
        shape, heads = plan.pool.shape, q.shape[1]
        work = TileWork.of(plan.spans, plan.table, heads // shape.kv_heads)
        count, width = work.num_partials * heads, -(-shape.v_dim // PANEL) * PANEL
        self.scaling = np.empty(1, np.float32)
        self.counters = np.zeros(3, np.int64)
        self.parallel = work.num_tiles * shape.kv_heads > _FEW
        self._arrays: dict[str, npt.NDArray[Any]] = {  # kept: the block holds bare addresses
            "values": np.empty(count * width, np.float32),
            "peaks": np.empty(count, np.float32),
            "weights": np.empty(count, np.float32),
            "scaling": self.scaling,
            "table": plan.table,
            "positions": plan.positions,
            "rows": work.rows,
            "items": work.items.reshape(-1),
            "partial_begin": work.partial_begin,
            "split_rows": work.split_rows,
            "counters": self.counters,
        }
        self._block = self._filled({"heads": heads, "max_rows": work.max_rows, **_widths(shape)})
        self.address = self._block.ctypes.data

    def _filled(self, numbers: dict[str, int]) -> npt.NDArray[np.int64]:
        block = np.zeros(BLOCK_LENGTH, np.int64)
        for index, name in enumerate(ARRAYS):
            if name in self._arrays:
                array = self._arrays[name]
                block[2 * index : 2 * index + 2] = array.ctypes.data, array.size
        block[-len(NUMBERS) :] = [numbers[name] for name in NUMBERS]
        return block

    def point_to(self, *tensors: torch.Tensor) -> None:
        """q, k, v and out of the layer: contiguous float32."""
        for index, tensor in enumerate(tensors):
            assert tensor.is_contiguous(), "the kernel reads flat memory"
            assert tensor.dtype == torch.float32, "the kernel reads float32"
            self._block[2 * index], self._block[2 * index + 1] = tensor.data_ptr(), tensor.numel()


def _widths(shape: KVShape) -> dict[str, int]:
    return {"kv_heads": shape.kv_heads, "k_dim": shape.k_dim, "v_dim": shape.v_dim}


@compiled
def read_floats(block: Any, index: int) -> Any:
    """Array number `index` of a block (compiled code only)."""
    return carray(pointer(block[2 * index]), block[2 * index + 1], np.float32)


@compiled
def _ints(block: Any, index: int) -> Any:
    return carray(pointer(block[2 * index]), block[2 * index + 1], np.int32)


@compiled
def read_longs(block: Any, index: int) -> Any:
    """`read_floats` for int64 (compiled code only)."""
    return carray(pointer(block[2 * index]), block[2 * index + 1], np.int64)


@compiled
def read_step(address: Any) -> Step:
    """The step whose block lies at `address` (compiled code only)."""
    b = carray(address, BLOCK_LENGTH, np.int64)
    partials = Sums(read_floats(b, 4), read_floats(b, 5), read_floats(b, 6))
    n = b[BLOCK_LENGTH - len(NUMBERS) :]
    return Step(
        read_floats(b, 0),
        read_floats(b, 1),
        read_floats(b, 2),
        read_floats(b, 3),
        partials,
        read_floats(b, 7),
        _ints(b, 8),
        _ints(b, 9),
        _ints(b, 10),
        read_longs(b, 11),
        read_longs(b, 12),
        read_longs(b, 13),
        read_longs(b, 14),
        n[0],
        n[1],
        n[2],
        n[3],
        n[4],
    )

"""How a step of attention is passed to compiled code: as one block of int64 with addresses, lengths
and numbers, which `StepBlock` writes and `read_step` reads.

    address of q | length of q | address of k | length of k | ... | heads | kv_heads | k_dim | v_dim

The kernel gets addresses instead of arrays, because a thread is given one pointer, and because only
four tensors differ between layers: their entries are overwritten, the rest stays.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from radixserve.kernels.arrays import Floats, Longs
from radixserve.kernels.cpu.attention_memory import ScratchMemory, Sums
from radixserve.kernels.cpu.attention_work import TileWork
from radixserve.kernels.cpu.compile import (
    address_of,
    compiled,
    floats_in,
    ints_in,
    longs_at,
    longs_in,
)
from radixserve.kernels.cpu.vector import PANEL
from radixserve.kernels.step import AttentionPlan
from radixserve.tensors.kv import KVShape

_FEW = 16  # tiles, up to which waking another thread costs more than it saves


class Step(NamedTuple):
    """One layer of a step as the kernel reads it. Arrays are flat; ARRAYS and NUMBERS give their
    order in the block.
    """

    q: Any  # [rows * heads * k_dim]
    k: Any  # [slots * kv_heads * k_dim]
    v: Any  # [slots * kv_heads * v_dim]
    out: Any  # [rows * heads * v_dim]
    partials: Sums  # stored contributions, for each of them `heads` rows
    scaling: Any  # [1]
    table: Any  # slots, as in `AttentionPlan`
    positions: Any
    rows: Any  # this and what follows as in `TileWork`
    places: Any
    opens: Any
    items: Any  # [items * 7]
    split_rows: Any  # [rows whose contributions are stored * 3]
    counters: Any  # [4]: what the threads have taken and done; zero at the start
    scratch: Any  # `ScratchMemory.block`
    heads: Any
    kv_heads: Any
    k_dim: Any
    v_dim: Any


FLOATS = ("q", "k", "v", "out", "values", "peaks", "weights", "scaling")
INTS = ("table", "positions", "rows", "places", "opens")
LONGS = ("items", "split_rows", "counters", "scratch")
ARRAYS = FLOATS + INTS + LONGS
NUMBERS = ("heads", "kv_heads", "k_dim", "v_dim")
BLOCK_LENGTH = 2 * len(ARRAYS) + len(NUMBERS)
"""The block is int64: address and length of each of ARRAYS in that order, then NUMBERS."""


class StepBlock:
    """One step for `attention`. All but the tensors of a layer and its scaling is the same for
    all layers.
    """

    def __init__(self, plan: AttentionPlan, q: torch.Tensor) -> None:
        shape, heads = plan.pool.shape, q.shape[1]
        work = TileWork.of(plan.spans, plan.table, heads // shape.kv_heads)
        count, width = len(work.opens) * heads, -(-shape.v_dim // PANEL) * PANEL
        self.scaling = np.empty(1, np.float32)
        self.counters = np.zeros(4, np.int64)
        self.parallel = work.num_tiles * shape.kv_heads > _FEW
        most, threads = work.max_rows * heads // shape.kv_heads, max(1, torch.get_num_threads())
        self._scratch = ScratchMemory(threads, most, heads, shape.k_dim, width)
        self._arrays: dict[str, npt.NDArray[Any]] = {  # kept: the block holds bare addresses
            "values": np.empty(count * width, np.float32),
            "peaks": np.empty(count, np.float32),
            "weights": np.empty(count, np.float32),
            "scaling": self.scaling,
            "table": plan.table,
            "positions": plan.positions,
            "rows": work.rows,
            "places": work.places,
            "opens": work.opens,
            "items": work.items.reshape(-1),
            "split_rows": work.split_rows.reshape(-1),
            "counters": self.counters,
            "scratch": self._scratch.block.reshape(-1),
        }
        self._block = self._filled({"heads": heads, **_widths(shape)})
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
        """Set q, k, v and out of a layer, in that order: contiguous float32."""
        for index, tensor in enumerate(tensors):
            assert tensor.is_contiguous(), "the kernel reads flat memory"
            assert tensor.dtype == torch.float32, "the kernel reads float32"
            self._block[2 * index], self._block[2 * index + 1] = tensor.data_ptr(), tensor.numel()

    def fill(
        self, blocks: Longs, tensors: Sequence[torch.Tensor], scalings: Floats, counters: Longs
    ) -> None:
        """Write one block per layer to `blocks` [layers, BLOCK_LENGTH], each with counters of its
        own from `counters` [layers, 4].

        `tensors` are q, K, V and out; q and out are the same for all layers, K and V are [layers,
        ...]. `scalings` is [layers].
        """
        blocks[:] = self._block
        layer = np.arange(len(blocks))
        for index, tensor in enumerate(tensors):
            each = tensor.stride(0) if index in (1, 2) else 0  # elements between layers
            blocks[:, 2 * index] = tensor.data_ptr() + layer * each * tensor.element_size()
            blocks[:, 2 * index + 1] = tensor[0].numel() if each else tensor.numel()
        blocks[:, 2 * ARRAYS.index("scaling")] = scalings.ctypes.data + layer * scalings.itemsize
        blocks[:, 2 * ARRAYS.index("counters")] = counters.ctypes.data + layer * counters.strides[0]


def _widths(shape: KVShape) -> dict[str, int]:
    return {"kv_heads": shape.kv_heads, "k_dim": shape.k_dim, "v_dim": shape.v_dim}


@compiled
def read_step(address: Any) -> Step:
    """The step whose block lies at `address` (compiled code only). Indices are places in ARRAYS."""
    b = longs_at(address_of(address), BLOCK_LENGTH)
    # numba cannot look names up here: each index is that of ARRAYS, numbers follow the arrays.
    partials = Sums(floats_in(b, 4), floats_in(b, 5), floats_in(b, 6))
    n = b[BLOCK_LENGTH - len(NUMBERS) :]
    return Step(
        floats_in(b, 0),
        floats_in(b, 1),
        floats_in(b, 2),
        floats_in(b, 3),
        partials,
        floats_in(b, 7),
        ints_in(b, 8),
        ints_in(b, 9),
        ints_in(b, 10),
        ints_in(b, 11),
        ints_in(b, 12),
        longs_in(b, 13),
        longs_in(b, 14),
        longs_in(b, 15),
        longs_in(b, 16),
        n[0],
        n[1],
        n[2],
        n[3],
    )

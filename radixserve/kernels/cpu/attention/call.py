"""Attention on the CPU: chooses the kernel for the dtypes and the level of the processor (`kernel`,
`pairs` or `amx`), and runs it for one layer on torch's own worker threads, or gives its address and
arguments to a program.

It knows nothing of how a kernel computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from radixserve.kernels.arrays import Longs
from radixserve.kernels.cpu import levels, native, threads
from radixserve.kernels.cpu.attention import amx, kernel, pairs
from radixserve.kernels.cpu.attention.bfloat16 import MULTIPLE, TileScratch, tile_scratch_lengths
from radixserve.kernels.cpu.attention.block import AttentionBlock, StepBlock
from radixserve.kernels.cpu.attention.memory import Scratch, scratch_lengths
from radixserve.kernels.cpu.attention.work import TileWork
from radixserve.kernels.cpu.block import BlockMemory
from radixserve.kernels.cpu.levels import Level
from radixserve.kernels.cpu.products import panel_of
from radixserve.kernels.step import AttentionPlan
from radixserve.tensors.kv import KVShape

COUNTERS = 4
"""How many counters a launch needs."""

_FEW = 16  # tiles, up to which waking another thread costs more than it saves


class AttentionStep:
    """The attention of one step after the other, for all layers of a model.

    A launch stays valid for all later steps: its tensors stay where they are, and `hold` writes the
    next step to the same block. Only one step is held at a time.
    """

    def __init__(self, shape: KVShape, heads: int, dtype: torch.dtype) -> None:
        """`dtype` is that of activations; the pool's may be another. The current level chooses the
        kernel, which is compiled if it never was: seconds.
        """
        self._shape, self._heads = shape, heads
        level = levels.current()
        wide = level >= Level.AVX512
        self._width = -(-shape.v_dim // panel_of(wide)) * panel_of(wide)
        self._block = StepBlock(heads=heads, kv_heads=shape.kv_heads, width=self._width)
        self._block.set(k_dim=shape.k_dim, v_dim=shape.v_dim)
        self._block.set(k_row=shape.k_row, v_row=shape.v_row)
        self._in_bfloat16 = level >= Level.AVX512_BF16 and _in_bfloat16(shape, dtype)
        work = kernel.work_of(dtype, shape.dtype, wide)
        if self._in_bfloat16:
            work = amx.work if level >= Level.AMX else pairs.work
        self._kernel = native.address(work, level)
        self.held: AttentionPlan | None = None
        self._kept: dict[str, Any] = {}  # the block holds bare addresses
        self._most = 0  # query rows of an item for which there is scratch memory
        self._parallel = False
        self._counters = np.zeros(COUNTERS, np.int64)
        self._call = AttentionBlock(step=self._block.address, **_named(self._counters))

    def hold(self, plan: AttentionPlan) -> None:
        """Write a step to the block. Cost: as `TileWork.of`."""
        self.held = plan
        group = self._heads // self._shape.kv_heads
        work = TileWork.of(plan.spans, plan.table, group)
        self._parallel = work.num_tiles * self._shape.kv_heads > _FEW
        self._keep(table=plan.table, positions=plan.positions, rows=work.rows, places=work.places)
        self._keep(opens=work.opens, items=work.items, split_rows=work.split_rows)
        self._make_room(work.max_rows * group)
        self._make_partials(len(work.opens) * self._heads)

    def launch(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        scaling: float,
        counters: Longs,
    ) -> tuple[int, AttentionBlock]:
        """The kernel's address and its arguments for one layer, valid as long as this object.

        K and V are one layer of the pool; q [rows, heads, k_dim] and out [rows, heads, v_dim] are
        activations; `counters` is int64 [COUNTERS], all 0 when the kernel starts.
        """
        block = AttentionBlock(q=q, k=k, v=v, out=out, scaling=scaling, **_named(counters))
        block.step = self._block.address
        return self._kernel, block

    def run(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, scaling: float
    ) -> None:
        """Compute one layer of the step that is held now. The arguments are as for `launch`."""
        self._call.set(q=q, k=k, v=v, out=out, scaling=scaling)
        self._counters[:] = 0
        threads.run(self._kernel, self._call.address, self._parallel)

    def _keep(self, **arrays: Any) -> None:
        self._kept |= arrays
        self._block.set(**arrays)

    def _make_room(self, most: int) -> None:
        """Scratch memory for items of `most` query rows."""
        if most > self._most:
            bfloat16 = TileScratch, tile_scratch_lengths
            kind, lengths = bfloat16 if self._in_bfloat16 else (Scratch, scratch_lengths)
            sizes = lengths(most, self._heads, self._shape.k_dim, self._width)
            self._scratch = BlockMemory(kind, max(1, torch.get_num_threads()), sizes)
            self._block.scratch = self._scratch.addresses
            self._most = most

    def _make_partials(self, rows: int) -> None:
        """Memory for the stored contributions to `rows` query rows at one head each."""
        self._partials = np.empty(rows * (self._width + 2), np.float32)
        values, peaks, weights = np.split(self._partials, [rows * self._width, -rows])
        self._block.partials.set(values=values, peaks=peaks, weights=weights)


def _named(counters: Longs) -> dict[str, Longs]:
    """The counters of a launch by the names of their fields."""
    names = ("taken", "done", "finished", "threads")
    return {name: counters[i : i + 1] for i, name in enumerate(names)}


def _in_bfloat16(shape: KVShape, dtype: torch.dtype) -> bool:
    """Whether kernels that multiply bfloat16 can serve this shape and dtype of activations."""
    whole = shape.k_dim % MULTIPLE == shape.v_dim % MULTIPLE == 0
    return shape.dtype == dtype == torch.bfloat16 and whole


def attend_cpu(q: torch.Tensor, layer: int, plan: AttentionPlan, scaling: float) -> torch.Tensor:
    """Attention of one layer on the CPU; q is float32 or bfloat16, and the pool may have another
    dtype. See `kernels.attention` for the shapes. The first call of a step prepares the plan for
    all layers.
    """
    if plan.prepared is None:
        plan.prepared = AttentionStep(plan.pool.shape, q.shape[1], q.dtype)
        plan.prepared.hold(plan)
    step = plan.prepared
    assert isinstance(step, AttentionStep), "one kernel serves all layers of a step"
    assert step.held is plan, "one step is held at a time"
    out = q.new_empty(*q.shape[:2], plan.pool.shape.v_dim)
    step.run(q, plan.pool.k[layer], plan.pool.v[layer], out, scaling)
    return out

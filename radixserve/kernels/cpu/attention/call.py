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
from radixserve.kernels.attention import LayerAttention
from radixserve.kernels.cpu import levels, native, threads
from radixserve.kernels.cpu.attention import amx, kernel, pairs
from radixserve.kernels.cpu.attention.bfloat16 import MULTIPLE, TileScratch, tile_scratch_lengths
from radixserve.kernels.cpu.attention.block import AttentionBlock, StepBlock
from radixserve.kernels.cpu.attention.memory import Scratch, scratch_lengths
from radixserve.kernels.cpu.attention.work import NO_WINDOW, TileWork, kind_of_step, leaders_of
from radixserve.kernels.cpu.block import BlockMemory
from radixserve.kernels.cpu.levels import Level
from radixserve.kernels.cpu.products import panel_of
from radixserve.kernels.step import AttentionPlan
from radixserve.tensors.kv import KVShape

COUNTERS = 4
"""How many counters a launch needs."""

_FEW = 16  # tiles, up to which waking another thread costs more than it saves


class _WindowWork:
    """The work of the held step for all layers of one window, in a block that stays where it
    is.
    """

    def __init__(self, window: int | None, block: StepBlock) -> None:
        self.block, self.is_parallel = block, False
        self.max_rows = 0  # query rows of an item, at most
        self._window = window
        self._kept: dict[str, Any] = {}  # the block holds bare addresses
        self._work: TileWork  # of the held step
        self._kind: bytes | None = None  # `kind_of_step` of that step

    def hold(self, plan: AttentionPlan, leaders: Longs, group: int) -> None:
        """Write a step to the block, except for the scratch memory."""
        self._keep(table=plan.table, positions=plan.positions)
        # Until all of it is made, nothing is held: making it may fail for want of memory.
        before, self._kind = self._kind, None
        kind = kind_of_step(plan.spans, leaders, self._window)
        if kind is not None and kind == before:
            self._work.move_on(plan.spans)
            self._kind = kind
            return
        self._work = work = TileWork.of(plan.spans, leaders, group, self._window)
        kv_heads = self.block.kv_heads
        self.is_parallel = work.num_tiles * kv_heads > _FEW
        self._keep(rows=work.rows, places=work.places)
        self._keep(opens=work.opens, items=work.items, split_rows=work.split_rows)
        self.max_rows = work.max_rows * group
        self._make_partials(len(work.opens) * group * kv_heads)
        self._kind = kind

    def _keep(self, **arrays: Any) -> None:
        self._kept |= arrays
        self.block.set(**arrays)

    def _make_partials(self, rows: int) -> None:
        """Memory for the stored contributions to `rows` query rows at one head each."""
        width = self.block.width
        self._partials = np.empty(rows * (width + 2), np.float32)
        values, peaks, weights = np.split(self._partials, [rows * width, -rows])
        self.block.partials.set(values=values, peaks=peaks, weights=weights)


class AttentionStep:
    """The attention of one step after the other, for all layers of a model.

    A launch stays valid for all later steps: its tensors stay where they are, and `hold` writes the
    next step to the same blocks. Only one step is held at a time.
    """

    def __init__(self, shape: KVShape, heads: int, dtype: torch.dtype) -> None:
        """`dtype` is that of activations; the pool's may be another. The current level chooses the
        kernels.
        """
        self._shape, self._heads, self.dtype = shape, heads, dtype
        self._level = levels.current()
        panel = panel_of(self._level >= Level.AVX512)
        self._width = -(-shape.v_dim // panel) * panel
        self._in_bfloat16 = self._level >= Level.AVX512_BF16 and _in_bfloat16(shape, dtype)
        self.held: AttentionPlan | None = None
        self._works: dict[int | None, _WindowWork] = {}  # by the layers' window
        self._most = -1  # query rows of an item for which there is scratch memory
        self._counters = np.zeros(COUNTERS, np.int64)
        self._call = AttentionBlock(**_named(self._counters))

    def hold(self, plan: AttentionPlan) -> None:
        """Write a step to the blocks. Cost: as `leaders_of`, once for each window as
        `TileWork.of`.
        """
        self.held = plan
        self._leaders = _leaders_of(plan)
        for work in self._works.values():
            self._fill(work, plan)

    def launch(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        attention: LayerAttention,
        counters: Longs,
    ) -> tuple[int, AttentionBlock]:
        """The kernel's address and its arguments for one layer, valid as long as this object. A
        kernel that was never compiled is, which takes seconds.

        K and V are one layer of the pool; q [rows, heads, k_dim] and out [rows, heads, v_dim] are
        activations; `counters` is int64 [COUNTERS], all 0 when the kernel starts.
        """
        block = AttentionBlock(q=q, k=k, v=v, out=out, **_named(counters))
        block.set(**_described(attention), step=self._work(attention.window).block.address)
        return self._kernel(attention), block

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        attention: LayerAttention,
    ) -> None:
        """Compute one layer of the step that is held now. The arguments are as for `launch`."""
        work = self._work(attention.window)
        self._call.set(q=q, k=k, v=v, out=out, **_described(attention), step=work.block.address)
        self._counters[:] = 0
        threads.run(self._kernel(attention), self._call.address, work.is_parallel)

    def _kernel(self, attention: LayerAttention) -> int:
        """The address of the kernel for a layer."""
        special, wide = not attention.is_plain, self._level >= Level.AVX512
        if self._in_bfloat16:
            module = amx if self._level >= Level.AMX else pairs
            work = module.special_work if special else module.work
        else:
            work = kernel.work_of(self.dtype, self._shape.dtype, wide, special)
        return native.address(work, self._level)

    def _work(self, window: int | None) -> _WindowWork:
        """The work for layers of that window, of the held step if there is one."""
        work = self._works.get(window)
        if work is None:
            shape = self._shape
            block = StepBlock(heads=self._heads, kv_heads=shape.kv_heads, width=self._width)
            block.set(k_dim=shape.k_dim, v_dim=shape.v_dim, k_row=shape.k_row, v_row=shape.v_row)
            work = self._works[window] = _WindowWork(window, block)
            if self.held is not None:
                self._fill(work, self.held)
        return work

    def _fill(self, work: _WindowWork, plan: AttentionPlan) -> None:
        """Write a step to one block."""
        work.hold(plan, self._leaders, self._heads // self._shape.kv_heads)
        self._make_room(work.max_rows)
        work.block.scratch = self._scratch.addresses

    def _make_room(self, most: int) -> None:
        """Scratch memory for items of `most` query rows, which all layers share."""
        if most > self._most:
            bfloat16 = TileScratch, tile_scratch_lengths
            kind, lengths = bfloat16 if self._in_bfloat16 else (Scratch, scratch_lengths)
            sizes = lengths(most, self._heads, self._shape.k_dim, self._width)
            self._scratch = BlockMemory(kind, max(1, torch.get_num_threads()), sizes)
            self._most = most
            for work in self._works.values():
                work.block.scratch = self._scratch.addresses


def _leaders_of(plan: AttentionPlan) -> Longs:
    """The leaders of a plan, which hold for its windowed layers, too: where two sequences have the
    same slots, they have the same window slots.
    """
    if plan.leaders is None:
        plan.leaders = leaders_of(plan.spans, plan.table)
    if plan.windowed is not None:
        plan.windowed.leaders = plan.leaders
    return plan.leaders


def _described(attention: LayerAttention) -> dict[str, Any]:
    """What an `AttentionBlock` says of a layer's attention."""
    return {
        "scaling": attention.scaling,
        "window": attention.window or NO_WINDOW,
        "softcap": attention.softcap or 0.0,
        "sinks": attention.sinks,
        "slopes": attention.slopes,
    }


def _named(counters: Longs) -> dict[str, Longs]:
    """The counters of a launch by the names of their fields."""
    names = ("taken", "done", "finished", "threads")
    return {name: counters[i : i + 1] for i, name in enumerate(names)}


def _in_bfloat16(shape: KVShape, dtype: torch.dtype) -> bool:
    """Whether kernels that multiply bfloat16 can serve this shape and dtype of activations."""
    whole = shape.k_dim % MULTIPLE == shape.v_dim % MULTIPLE == 0
    return shape.dtype == dtype == torch.bfloat16 and whole


def attend_cpu(
    q: torch.Tensor, layer: int, plan: AttentionPlan, attention: LayerAttention
) -> torch.Tensor:
    """Attention of one layer on the CPU; q is float32 or bfloat16, and the pool may have another
    dtype. See `kernels.attention` for the shapes. The first call of a step prepares the plan for
    all layers, the first one of each window what its layers share.
    """
    if plan.prepared is None:
        plan.prepared = AttentionStep(plan.pool.shape, q.shape[1], q.dtype)
        plan.prepared.hold(plan)
    step = plan.prepared
    assert isinstance(step, AttentionStep), "one kernel serves all layers of a step"
    assert step.held is plan, "one step is held at a time"
    out = q.new_empty(*q.shape[:2], plan.pool.shape.v_dim)
    step.run(q, plan.pool.k[layer], plan.pool.v[layer], out, attention)
    return out

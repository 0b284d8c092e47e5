"""Attention on the CPU: runs the compiled tile kernel for one layer, on torch's own worker threads.

Knows nothing of tiles.
"""

from __future__ import annotations

import torch

from radixserve.kernels.cpu import attention, native, threads
from radixserve.kernels.cpu.attention_block import StepBlock
from radixserve.kernels.step import AttentionPlan


def attend_cpu(q: torch.Tensor, layer: int, plan: AttentionPlan, scaling: float) -> torch.Tensor:
    """Attention of one layer, float32 on the CPU only; see `attention` for the shapes. The first
    call of a step prepares the plan for all layers.
    """
    if plan.prepared is None:
        plan.prepared = StepBlock(plan, q)
    block = plan.prepared
    assert isinstance(block, StepBlock), "one kernel serves all layers of a step"
    out = torch.empty(*q.shape[:2], plan.pool.shape.v_dim)
    block.point_to(q, plan.pool.k[layer], plan.pool.v[layer], out)
    block.scaling[0] = scaling
    block.counters[:] = 0
    threads.run(native.address(attention.work), block.address, block.parallel)
    return out

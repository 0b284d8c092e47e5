"""What every attention kernel is called with, and the reference kernel in plain torch.

A kernel is called as `attend(q, layer, plan, scaling)`, with q [rows, heads, k_dim], and gives
[rows, heads, v_dim]. K and V of the step's own rows are in the pool already; each row attends the
slots that the plan lists for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from radixserve.kernels.step import AttentionPlan
from radixserve.tensors.one_byte import numbers_of

Kernel = Callable[[torch.Tensor, int, AttentionPlan, float], torch.Tensor]


def attend_torch(q: torch.Tensor, layer: int, plan: AttentionPlan, scaling: float) -> torch.Tensor:
    """The reference for any device: gathers each sequence's K/V and calls
    `scaled_dot_product_attention`, in float32 where q and K/V have different dtypes. Memory:
    O(context) per sequence.
    """
    k_pool, v_pool, dtype = plan.pool.k[layer], plan.pool.v[layer], plan.pool.shape.dtype
    given, q = q.dtype, q if q.dtype == dtype else q.float()
    parts = []
    spans = plan.spans
    for row, count, begin, start in zip(
        *(column.tolist() for column in spans.columns), strict=True
    ):
        stop = start + count
        slots = plan.device_table[begin : begin + stop]
        k, v = (  # [kv_heads, stop, dim]
            numbers_of(each[slots], dtype).transpose(0, 1).to(q.dtype) for each in (k_pool, v_pool)
        )
        rows = q[row : row + count].transpose(0, 1)  # [heads, count, dim]
        seen = (
            torch.arange(stop, device=q.device)
            <= torch.arange(start, stop, device=q.device)[:, None]
        )
        out = F.scaled_dot_product_attention(
            rows[None],
            k[None],
            v[None],
            attn_mask=seen,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[0],
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts).to(given)

"""What every attention kernel is called with, and the reference kernel in plain torch.

A kernel is called as `attend(q, layer, plan, attention)`, with q [rows, heads, k_dim], and gives
[rows, heads, v_dim]. K and V of the step's own rows are in the pool already; each row attends the
slots that the plan lists for it, as the layer's `LayerAttention` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from radixserve.kernels.step import AttentionPlan
from radixserve.tensors.one_byte import numbers_of


@dataclass(frozen=True, slots=True, eq=False)
class LayerAttention:
    """How a layer attends. The score of a row at position p for position j <= p is, in this order:

        scaling * q . k                        the product of query and key
        softcap * tanh(score / softcap)        where there is a softcap
        score + slope * (j - p)                where heads have slopes (ALiBi)

    With a window, only positions j > p - window are seen. A sink is a score without a position: it
    takes part in the sum that weights are divided by, and has no V.
    """

    scaling: float
    window: int | None = None  # how many positions a row sees at most, its own included
    softcap: float | None = None
    sinks: torch.Tensor | None = None  # float32 [heads]
    slopes: torch.Tensor | None = None  # float32 [heads]

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the scaling distinguishes it from other layers'."""
        return self.window is None and self.sinks is None and not self.changes_scores

    @property
    def changes_scores(self) -> bool:
        """Whether scores are more than products of queries and keys."""
        return self.softcap is not None or self.slopes is not None


Kernel = Callable[[torch.Tensor, int, AttentionPlan, LayerAttention], torch.Tensor]


def attend_torch(
    q: torch.Tensor, layer: int, plan: AttentionPlan, attention: LayerAttention
) -> torch.Tensor:
    """The reference for any device: gathers each sequence's K/V, in float32 where q and K/V have
    different dtypes. Memory: O(context) per sequence, times its rows if scores are changed or
    there are sinks.
    """
    k_pool, v_pool, dtype = plan.pool.k[layer], plan.pool.v[layer], plan.pool.shape.dtype
    given, q = q.dtype, q if q.dtype == dtype else q.float()
    parts = []
    for row, count, begin, start in zip(
        *(column.tolist() for column in plan.spans.columns), strict=True
    ):
        stop = start + count
        slots = plan.device_table[begin : begin + stop]
        k, v = (  # [kv_heads, stop, dim]
            numbers_of(each[slots], dtype).transpose(0, 1).to(q.dtype) for each in (k_pool, v_pool)
        )
        rows = q[row : row + count].transpose(0, 1)  # [heads, count, dim]
        distance = (
            torch.arange(stop, device=q.device)
            - torch.arange(start, stop, device=q.device)[:, None]
        )
        parts.append(_attend_sequence(rows, k, v, distance, attention).transpose(0, 1))
    return torch.cat(parts).to(given)


def _attend_sequence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    distance: torch.Tensor,
    attention: LayerAttention,
) -> torch.Tensor:
    """[heads, rows, v_dim] from q [heads, rows, k_dim], K and V [kv_heads, positions, dim], and how
    far each position lies behind each row, [rows, positions].
    """
    seen = distance <= 0
    if attention.window is not None:
        seen &= distance > -attention.window
    if attention.sinks is None and not attention.changes_scores:
        return F.scaled_dot_product_attention(
            q[None],
            k[None],
            v[None],
            attn_mask=seen,
            scale=attention.scaling,
            enable_gqa=q.shape[0] != k.shape[0],
        )[0]
    group = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    weights = _weights((q @ k.transpose(1, 2)).float(), distance, seen, attention)
    return weights.to(v.dtype) @ v


def _weights(
    products: torch.Tensor, distance: torch.Tensor, seen: torch.Tensor, attention: LayerAttention
) -> torch.Tensor:
    """The weights [heads, rows, positions] of products of queries and keys, in float32."""
    scores = products * attention.scaling
    if attention.softcap is not None:
        scores = attention.softcap * torch.tanh(scores / attention.softcap)
    if attention.slopes is not None:
        scores = scores + attention.slopes.to(scores.device)[:, None, None] * distance
    scores = scores.masked_fill(~seen, -torch.inf)
    if attention.sinks is None:
        return scores.softmax(-1)
    sinks = attention.sinks.to(scores.device)[:, None, None].expand(*scores.shape[:2], 1)
    return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]

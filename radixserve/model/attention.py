"""The function that transformers calls instead of its own attention.

The step's `AttentionPlan` arrives as the keyword argument `plan` of `model(...)`. K and V of the
step's rows go to the pool first, then every row attends its slots (`kernels.attention`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface

from radixserve.errors import ModelRefused
from radixserve.kernels.attention import Kernel, LayerAttention, attend_torch
from radixserve.kernels.step import AttentionPlan
from radixserve.tensors.one_byte import rows_of

TORCH = "radixserve_torch"
CPU = "radixserve_cpu"
_CHANGES_RESULT = ("softcap", "s_aux", "sinks", "head_mask", "position_bias", "alibi")


def interface(kernel: Kernel) -> Callable[..., tuple[torch.Tensor, None]]:
    """Adapts `kernel` to the signature that transformers calls."""

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,  # [1, heads, rows, k_dim]
        key: torch.Tensor,  # [1, kv_heads, rows, k_dim]
        value: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        plan: AttentionPlan,
        scaling: float | None = None,
        **rest: Any,
    ) -> tuple[torch.Tensor, None]:
        refuse_unknown(module, mask, rest, plan)
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        pool = plan.pool
        for target, numbers in ((pool.k[layer], key[0]), (pool.v[layer], value[0])):
            rows = rows_of(numbers.transpose(0, 1), pool.shape.dtype)
            target.index_copy_(0, plan.write_slots, rows)
        plan.layers_seen += 1
        q = query[0].transpose(0, 1).contiguous()
        attended = LayerAttention(query.shape[-1] ** -0.5 if scaling is None else scaling)
        return kernel(q, layer, plan, attended)[None], None

    return attention


def refuse_unknown(
    module: torch.nn.Module, mask: torch.Tensor | None, rest: dict[str, Any], plan: AttentionPlan
) -> None:
    """Refuse attention arguments that change the result and that our kernels do not know.

    Raises:
        ModelRefused: there is such an argument, or a layer attends twice.
    """
    name = type(module).__name__
    if plan.layers_seen >= plan.pool.shape.layers:
        raise ModelRefused(f"{name} attends more often than once per layer.")
    if mask is not None:
        raise ModelRefused(
            f"{name} asks for an attention mask of its own; only plain causal attention is served."
        )
    for argument in _CHANGES_RESULT:
        if rest.get(argument) is not None:
            raise ModelRefused(
                f"{name} asks for attention with {argument}; only plain causal attention is served."
            )
    window = rest.get("sliding_window")
    if window is not None and window < getattr(
        module.config, "max_position_embeddings", window + 1
    ):
        raise ModelRefused(
            f"{name} attends a sliding window of {window} tokens; only full attention is served."
        )


AttentionInterface.register(TORCH, interface(attend_torch))


def register_cpu_kernel() -> str:
    """Register the compiled kernel and return its name. Imports numba, which takes about a
    second.
    """
    from radixserve.kernels.cpu.attention.call import attend_cpu

    AttentionInterface.register(CPU, interface(attend_cpu))
    return CPU

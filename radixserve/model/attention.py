"""The function that transformers calls instead of its own attention.

The step's `AttentionPlan` is the current one (`model.current_plan`). K and V of the step's rows go
to the pool first, then every row attends its slots (`kernels.attention`). The n-th call in a step
has the n-th K and V of the pool, whatever number its layer has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface

from radixserve.checkpoints.windows import window_of, within_context
from radixserve.errors import ModelRefused
from radixserve.kernels.attention import Kernel, LayerAttention, attend_torch
from radixserve.kernels.step import AttentionPlan
from radixserve.model.current_plan import current_plan
from radixserve.tensors.one_byte import rows_of

TORCH = "radixserve_torch"
CPU = "radixserve_cpu"
_UNKNOWN = ("sinks", "head_mask", "position_bias", "alibi")


def interface(kernel: Kernel) -> Callable[..., tuple[torch.Tensor, None]]:
    """Adapts `kernel` to the signature that transformers calls."""

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,  # [1, heads, rows, k_dim]
        key: torch.Tensor,  # [1, kv_heads, rows, k_dim]
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float | None = None,
        **rest: Any,
    ) -> tuple[torch.Tensor, None]:
        plan = current_plan()
        refuse_unknown(module, attention_mask, rest, plan)
        layer, pool = plan.layers_seen, plan.pool
        for target, numbers in ((pool.k[layer], key[0]), (pool.v[layer], value[0])):
            rows = rows_of(numbers.transpose(0, 1), pool.shape.dtype)
            target.index_copy_(0, plan.write_slots, rows)
        plan.layers_seen += 1
        q = query[0].transpose(0, 1).contiguous()
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        number = int(getattr(module, "layer_idx", layer))
        return kernel(q, layer, plan, layer_attention(module, number, scaling, rest))[None], None

    return attention


def refuse_unknown(
    module: torch.nn.Module, mask: torch.Tensor | None, rest: dict[str, Any], plan: AttentionPlan
) -> None:
    """Refuse attention arguments that change the result and that our kernels do not know.

    Raises:
        ModelRefused: there is such an argument, or there is no K/V for another layer.
    """
    name = type(module).__name__
    if plan.layers_seen >= plan.pool.shape.layers:
        raise ModelRefused(f"{name} attends more often than once per layer.")
    if mask is not None:
        raise ModelRefused(
            f"{name} asks for an attention mask of its own; only causal attention is served."
        )
    for argument in _UNKNOWN:
        if rest.get(argument) is not None:
            raise ModelRefused(f"{name} asks for attention with {argument}, which is not served.")


def layer_attention(
    module: torch.nn.Module, layer: int, scaling: float, rest: dict[str, Any]
) -> LayerAttention:
    """What the arguments of a call say of a layer's attention.

    Raises:
        ModelRefused: the window is not that of the configuration. The load check's probe is shorter
            than most windows, so that it would not see which one is right.
    """
    name, config = type(module).__name__, getattr(module, "config", None)
    window, softcap, sinks = (rest.get(each) for each in ("sliding_window", "softcap", "s_aux"))
    if config is not None:
        window, configured = within_context(window, config), window_of(config, layer)
        if window != configured:
            raise ModelRefused(
                f"{name} asks for {_told(window)} in layer {layer}, and its configuration for "
                f"{_told(configured)}."
            )
    sinks = None if sinks is None else sinks.detach().float().contiguous()
    return LayerAttention(scaling, window, softcap, sinks)


def _told(window: int | None) -> str:
    return "full attention" if window is None else f"a window of {window} tokens"


AttentionInterface.register(TORCH, interface(attend_torch))


def register_cpu_kernel() -> str:
    """Register the compiled kernel and return its name. Imports numba, which takes about a
    second.
    """
    from radixserve.kernels.cpu.attention.call import attend_cpu

    AttentionInterface.register(CPU, interface(attend_cpu))
    return CPU

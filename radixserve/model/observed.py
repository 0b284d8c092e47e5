"""The shape of a model's K and V, found by looking at what its modules give to their attention.

A configuration says it in a dozen ways, and some classes give more heads to their attention than
the configuration counts, or call it more than once in a layer.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from radixserve.errors import ModelRefused, first_line
from radixserve.tensors.kv import KVShape

_LOOK = "radixserve_look"


@torch.inference_mode()
def observed_shape(model: PreTrainedModel) -> tuple[KVShape, int]:
    """The shape of a token's K and V in the dtype of the model, and how many query heads there are.
    Leaves the model with an attention that only looks. Cost: a forward pass of one token.

    Raises:
        ModelRefused: it does not use the attention that it is given, or its layers differ.
    """
    kind = type(model).__name__
    seen: list[tuple[int, int, int, int]] = []  # of each call: heads, kv_heads, k_dim, v_dim

    def look(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *rest: Any,
        **named: Any,
    ) -> tuple[torch.Tensor, None]:
        seen.append((query.shape[1], key.shape[1], key.shape[3], value.shape[3]))
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register(_LOOK, look)
    model.set_attn_implementation(_LOOK)
    try:
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)
    except (RuntimeError, TypeError, AttributeError, IndexError) as error:
        raise ModelRefused(
            f"{kind} does not run with other linear layers and attention: {first_line(error)}."
        ) from error
    if not seen:
        raise ModelRefused(f"{kind} does not call the attention that it is given.")
    if len(set(seen)) > 1:
        raise ModelRefused(f"The layers of {kind} have keys and values of different shapes.")
    heads, kv_heads, k_dim, v_dim = seen[0]
    return KVShape(len(seen), kv_heads, k_dim, v_dim, model.dtype), heads

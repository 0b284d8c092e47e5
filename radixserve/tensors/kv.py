"""The K and V tensors that slots index: the device memory for K/V, allocated once at start.

One slot is one token at all layers. Knows nothing of who owns a slot; a freed slot keeps its old
content until it is written again. The memory is zeroed at start, because the content of slots that
were never written must be finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

KV = tuple[torch.Tensor, torch.Tensor]
"""K [layers, tokens, kv_heads, k_dim] and V [layers, tokens, kv_heads, v_dim] of some tokens."""


@dataclass(frozen=True, slots=True)
class KVShape:
    """The shape of one token's K/V."""

    layers: int
    kv_heads: int
    k_dim: int
    v_dim: int
    dtype: torch.dtype

    @property
    def slot_bytes(self) -> int:
        """Bytes of K/V per token at all layers."""
        return self.layers * self.kv_heads * (self.k_dim + self.v_dim) * self.dtype.itemsize


class KVPool:
    """`k` [layers, slots, kv_heads, k_dim] and `v` [layers, slots, kv_heads, v_dim] on
    one device.
    """

    def __init__(self, shape: KVShape, num_slots: int, device: torch.device) -> None:
        self.shape = shape
        self.num_slots = num_slots
        size = (shape.layers, num_slots, shape.kv_heads)
        self.k = torch.zeros(*size, shape.k_dim, dtype=shape.dtype, device=device)
        self.v = torch.zeros(*size, shape.v_dim, dtype=shape.dtype, device=device)

    @property
    def slot_bytes(self) -> int:
        return self.shape.slot_bytes

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.k, self.v

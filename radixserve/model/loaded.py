"""A model that passed the load check, with the facts that the rest of the server needs of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from radixserve.cache.pool import KVShape
from radixserve.model.plan import AttentionPlan

Forward = Callable[[torch.Tensor, AttentionPlan, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """Read-only facts and the transformers module itself, in evaluation mode with our linears and
    attention.
    """

    model: torch.nn.Module
    device: torch.device
    shape: KVShape
    vocab_size: int
    context_length: int  # prompt + generated tokens at most
    eos_token_ids: tuple[int, ...]
    attention: str  # name of the attention kernel
    exact: bool  # a cache hit equals a miss bit for bit
    inexact_reason: str | None = None
    fallback_reason: str | None = None  # why this is not the device's own attention kernel
    generic_reason: str | None = None  # why `lean` is None
    lean: Forward | None = (
        None  # instead of calling `model`: token ids [rows], plan, wanted rows to logits
    )

    @property
    def dtype(self) -> torch.dtype:
        return self.shape.dtype

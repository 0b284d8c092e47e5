"""A model that passed the load check, with the facts about it that the rest of the server needs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from radixserve.kernels.step import AttentionPlan
from radixserve.tensors.kv import KVShape

log = logging.getLogger(__name__)

Forward = Callable[[torch.Tensor, AttentionPlan, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """The transformers module, in evaluation mode and with our linears and attention, and facts
    about it that do not change. The module is an empty one if the decoder was read without it
    (`model.direct`).
    """

    model: torch.nn.Module
    device: torch.device
    dtype: torch.dtype  # of weights and activations
    shape: KVShape
    vocab_size: int
    context_length: int  # prompt + generated tokens at most
    eos_token_ids: tuple[int, ...]
    attention: str  # name of the attention kernel
    exact: bool  # a cache hit equals a miss bit for bit
    inexact_reason: str | None = None
    fallback_reason: str | None = None  # why the device's own attention kernel is not used
    generic_reason: str | None = None  # why `decoder` is None
    # Replaces a call of `model`: maps token ids [rows], plan and wanted rows to logits.
    decoder: Forward | None = None


def tell(loaded: LoadedModel) -> None:
    """Log which forward serves, and what is exact."""
    if loaded.decoder is not None:
        log.info("the fast forward serves")
    else:
        log.info("the generic forward serves: %s", loaded.generic_reason)
    if loaded.exact:
        log.info("exact: a cache hit gives the same bits as a miss")
    else:
        log.warning(
            "outputs may depend on what is cached and on the batch: %s", loaded.inexact_reason
        )

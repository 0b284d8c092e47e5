"""A model that passed the load check, with the facts about it that the rest of the server needs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from radixserve.kernels.arrays import Longs
from radixserve.kernels.step import AttentionPlan
from radixserve.model.weights import Weights
from radixserve.tensors.kv import KVPool, KVShape, RecurrentLayers, StateShape

log = logging.getLogger(__name__)


class Forward(Protocol):
    """The forward pass of a decoder of our own (`model.decoder.Decoder`)."""

    weights: Weights

    def __call__(
        self,
        ids: torch.Tensor,
        plan: AttentionPlan,
        wanted: torch.Tensor,
        between_layers: Callable[[], None] | None = None,
        adapters: Longs | None = None,
    ) -> torch.Tensor:
        """Logits [len(wanted), vocab] of token ids [rows], for the rows that `wanted` lists.
        `adapters` [rows] are the addresses of the rows' adapters, 0 for none.
        """


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
    decoder: Forward | None = None  # replaces a call of `model`
    # Of each layer of `decoder`, how many positions a row sees; None: all. Empty: none has a window
    windows: tuple[int | None, ...] = ()
    states: StateShape | None = None  # of layers of `decoder` that have a state

    @property
    def weight_bytes(self) -> dict[str, int]:
        """See `Weights.bytes_by_format`; empty for the generic forward."""
        return {} if self.decoder is None else self.decoder.weights.bytes_by_format()

    def pool(self, num_slots: int, num_state_slots: int = 0) -> KVPool:
        """Memory for K/V of so many tokens, and for so many states, if layers have states."""
        recurrent = None if self.states is None else RecurrentLayers(self.states, num_state_slots)
        return KVPool(self.shape, num_slots, self.device, recurrent=recurrent)


def tell(loaded: LoadedModel) -> None:
    """Log which forward serves, and what is exact."""
    if loaded.decoder is not None:
        formats = loaded.weight_bytes.items()
        sizes = ", ".join(f"{size / (1 << 20):,.0f} MiB {name}" for name, size in formats)
        log.info("the fast forward serves; packed weights: %s", sizes)
    else:
        log.info("the generic forward serves: %s", loaded.generic_reason)
    if loaded.exact:
        log.info("exact: a cache hit gives the same bits as a miss")
    else:
        log.warning(
            "outputs may depend on what is cached and on the batch: %s", loaded.inexact_reason
        )

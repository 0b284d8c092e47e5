"""What a decoder computes with: the weights and constants of its layers, the embedding, the output
layer, and the rotary tables. Knows neither transformers nor files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from radixserve.kernels.cpu.gemm.call import Gemm

Rotary = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Cosines and sines [1, rows, dim], of the type of `x`, from `x` and the positions, int64
[1, rows].
"""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the operations need to know of a model, besides its weights and its pool."""

    heads: int
    epsilon: float  # of all norms


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights and constants of one decoder layer. Weights of norms are float32."""

    index: int
    input_norm: torch.Tensor  # [width]
    qkv: Gemm  # [(heads + 2 * kv_heads) * dim, width]
    q_norm: torch.Tensor | None  # [dim]
    k_norm: torch.Tensor | None
    scaling: float  # of queries
    o: Gemm
    post_norm: torch.Tensor
    gate_up: Gemm  # [2 * inner, width]: gate, then up
    down: Gemm


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights and constants of a decoder."""

    sizes: Sizes
    embedding: torch.Tensor | None  # [vocab, width]; None: the rows of `head`
    rotary: Rotary
    layers: list[Layer]
    norm: torch.Tensor  # [width], float32
    head: Gemm  # [vocab, width]

    @property
    def embed(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Gives the rows [ids, width] of token ids."""
        if self.embedding is None:
            return self.head.lookup()
        return partial(F.embedding, weight=self.embedding)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, as they lie in memory: weights are packed."""
        named = [("norm", self.norm), *_packed("head", self.head)]
        if self.embedding is not None:
            named.append(("embedding", self.embedding))
        for layer in self.layers:
            named += ((f"{layer.index}.{name}", tensor) for name, tensor in _tensors_of(layer))
        return dict(named)


def _tensors_of(layer: Layer) -> Iterator[tuple[str, torch.Tensor]]:
    for name in ("qkv", "o", "gate_up", "down"):
        yield from _packed(name, getattr(layer, name))
    for name in ("input_norm", "q_norm", "k_norm", "post_norm"):
        if (norm := getattr(layer, name)) is not None:
            yield name, norm


def _packed(name: str, weight: Gemm) -> Iterator[tuple[str, torch.Tensor]]:
    rows, inputs = weight.panels.shape
    yield f"{name} [{rows}, {inputs}], {weight.bits} bits", weight.panels.memory
    if weight.bias is not None:
        yield f"{name} bias", weight.bias

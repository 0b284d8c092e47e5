"""The roofline of a workload: how fast this machine multiplies, and how long the multiplications
alone would take.

A token costs 2 x parameters operations, all parameters counted once: the embedding is counted as
the lm head, which shares its weights in the embedded model. `strict` leaves the lm head out where
no logits are needed, that is for prompt tokens; the limit is lower by it. Attention is in neither.
The rate is the highest of any measurement in the dtype that the server computes in, on all cores:
the model's own packed linears at 256 rows and one large `torch.mm`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from radixserve.checkpoints.embedded import embedded_model
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.model.linear import FusedPart, PackedLinear
from radixserve.model.load import load_model
from radixserve.model.loaded import LoadedModel

ROWS, LARGE = 256, 2048
SECONDS = 2.0  # of each measurement
DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class Counts:
    """What a workload computed."""

    prompt_tokens: int  # not found in the cache
    generated_tokens: int


class Roofline:
    """The rates measured so far, for one model."""

    def __init__(self, model: str, dtype: torch.dtype) -> None:
        """`model` is a folder or a hub name; auto: the embedded one. `dtype` is that of weights
        and activations.
        """
        loaded = load_model(str(embedded_model()) if model == "auto" else model, DEVICE, dtype)
        self._dtype = dtype
        self.weights = packed_weights(loaded)
        self.parameters, self.head_parameters = parameters(loaded)
        self.rates: dict[str, list[float]] = {
            "packed linears": [],
            "torch.mm": [],
        }  # operations per second

    @property
    def rate(self) -> float:
        return max(max(rates) for rates in self.rates.values())

    @torch.inference_mode()
    def measure(self) -> None:
        """Add the best of a few seconds of each kind."""
        inputs = {
            size: torch.randn(ROWS, size, dtype=self._dtype)
            for size in {weight.in_features for weight in self.weights}
        }
        a, b = torch.randn(2, LARGE, LARGE, dtype=self._dtype)

        def linears() -> None:
            for weight in self.weights:
                weight(inputs[weight.in_features])

        multiplied = sum(weight.in_features * weight.out_features for weight in self.weights)
        self.rates["packed linears"].append(2 * ROWS * multiplied / shortest(linears))
        self.rates["torch.mm"].append(2 * LARGE**3 / shortest(lambda: torch.mm(a, b)))

    def limit(self, counts: Counts, *, strict: bool = False) -> float:
        """Seconds that the multiplications take at the measured rate."""
        operations = 2 * self.parameters * (counts.prompt_tokens + counts.generated_tokens)
        if strict:
            operations -= 2 * self.head_parameters * counts.prompt_tokens
        return operations / self.rate


def packed_weights(loaded: LoadedModel) -> list[Gemm]:
    """Every packed weight once, in the order of the forward pass."""
    found: dict[Gemm, None] = {}
    for module in loaded.model.modules():
        if isinstance(module, FusedPart):
            found[module.fused.weight] = None
        elif isinstance(module, PackedLinear):
            found[module.packed] = None
    return list(found)


def parameters(loaded: LoadedModel) -> tuple[int, int]:
    """All that a token is multiplied by, lm head included, and the lm head's share."""
    sizes = [weight.in_features * weight.out_features for weight in packed_weights(loaded)]
    vectors = sum(each.numel() for each in loaded.model.parameters() if each.dim() == 1)
    model: Any = loaded.model
    head = model.get_output_embeddings().packed
    return sum(sizes) + vectors, head.in_features * head.out_features


def shortest(work: Callable[[], object]) -> float:
    """The shortest of the runs that fit into SECONDS, and at least three."""
    found: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(found) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)

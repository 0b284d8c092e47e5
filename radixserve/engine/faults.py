"""What a step that raised comes to: how a request ends that fails so again, and what is freed before the next try.

Knows exceptions and memory, no steps and no sequences.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch

from radixserve.step import FaultKind, FinishReason

_NO_HOST_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # torch raises a plain RuntimeError for it


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a step came to nothing for a request, without the exception: its frames hold the tensors of the step."""

    kind: FaultKind
    finish: FinishReason
    error: str  # a sentence for the client


FAILED = Fault("exception", "error", "the forward pass failed")
NOT_FINITE = Fault("not_finite", "error", "the model produced logits that are not finite")
OUT_OF_MEMORY = Fault("out_of_memory", "abort", "the server ran out of memory")


def fault_of(error: Exception) -> Fault:
    """Lack of memory passes, so such a request may come again; with anything else it would fail again."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return OUT_OF_MEMORY
    return OUT_OF_MEMORY if isinstance(error, RuntimeError) and _NO_HOST_MEMORY in str(error) else FAILED


def free_memory() -> None:
    """Give back what no tensor uses. The K/V pool stays: it was taken whole at start."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA is not in use

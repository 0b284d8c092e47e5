"""What a step that raised comes to: how a request ends that fails so again, what is freed before
the next try, and when there is none because the device is lost to this process.

Knows exceptions and memory, no steps and no sequences.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch

from radixserve.step import FaultKind, FinishReason

_OF_CUDA = (
    "CUDA error: ",
    "Triton Error [CUDA]: ",
)  # how torch and Triton begin what the CUDA driver says
_PASSING = (  # refused without harm to the context; after all else every later call fails as well
    *(
        "out of memory",
        "invalid argument",
        "invalid configuration argument",
        "too many resources requested",
    ),
    *(
        "no kernel image is available",
        "invalid device function",
        "operation not permitted when stream is capturing",
    ),
    "CUBLAS_STATUS_",  # whether the context is lost the next call tells
)
_NO_MEMORY = (  # where torch raises a plain RuntimeError for it
    *(
        "DefaultCPUAllocator: can't allocate memory",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
    ),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a step came to nothing for a request, without the exception: its frames hold the tensors
    of the step.
    """

    kind: FaultKind
    finish: FinishReason
    error: str  # a sentence for the client


FAILED = Fault("exception", "error", "the forward pass failed")
NOT_FINITE = Fault("not_finite", "error", "the model produced logits that are not finite")
OUT_OF_MEMORY = Fault("out_of_memory", "abort", "the server ran out of memory")


class DeviceLost(Exception):
    """The device answers this process no more; only a new process gets it back."""


def fault_of(error: Exception) -> Fault:
    """Lack of memory passes, so such a request may come again; with anything else it would fail
    again.

    Raises:
        DeviceLost: after this error every call of CUDA fails (a device-side assert, an illegal
            access).
    """
    if _loses_device(error):
        raise DeviceLost(str(error).partition("\n")[0]) from error
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return OUT_OF_MEMORY
    lacking = isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    return OUT_OF_MEMORY if lacking else FAILED


def _loses_device(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return False
    text = str(error)
    of_cuda = isinstance(error, torch.AcceleratorError) or any(words in text for words in _OF_CUDA)
    return of_cuda and not any(words in text for words in _PASSING)


def free_memory() -> None:
    """Give back what no tensor uses. The K/V pool stays: it was taken whole at start."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA is not in use

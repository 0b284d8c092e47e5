"""Classifies exceptions of a step: how a request ends that fails again, what is freed before the
next try, and when there is no next try because the device is lost to this process.

Knows exceptions and memory, no steps and no sequences.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch

from radixserve.errors import DeviceLost
from radixserve.step import FaultKind, FinishReason

# How torch and Triton begin the messages of the CUDA driver.
_OF_CUDA = (
    "CUDA error: ",
    "Triton Error [CUDA]: ",
)
_PASSING = (  # these leave the CUDA context intact; after any other error every later call fails
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
    "CUBLAS_STATUS_",  # the next call shows whether the context is lost
)
_NO_MEMORY = (  # messages of a plain RuntimeError that torch raises for lack of memory
    *(
        "DefaultCPUAllocator: can't allocate memory",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
    ),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """The reason why a step failed for a request. It does not hold the exception, whose frames hold
    the tensors of the step.
    """

    kind: FaultKind
    finish: FinishReason
    error: str  # a sentence for the client


FAILED = Fault("exception", "error", "the forward pass failed")
NOT_FINITE = Fault("not_finite", "error", "the model produced logits that are not finite")
OUT_OF_MEMORY = Fault("out_of_memory", "abort", "the server ran out of memory")


def fault_of(error: Exception) -> Fault:
    """The fault for an exception of a step. After lack of memory the request ends with "abort",
    because it may work later; after anything else it ends with "error", because it would fail
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
    """Return the memory that no tensor uses. The K/V pool stays: it was allocated whole at
    start.
    """
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA is not in use

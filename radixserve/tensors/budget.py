"""How many tokens of K/V a byte budget holds, and which budget is used if none is given.

Reads the free memory of the device and allocates nothing. An explicit budget is used as given, or
refused if less is free. The default is a share of what is free after the model is loaded: a quarter
on a CPU (4 GiB at most, because the machine has other work), 85 % on CUDA.
"""

from __future__ import annotations

import torch

from radixserve.errors import ConfigError
from radixserve.machine import THIS
from radixserve.step import MIN_SLOTS
from radixserve.tensors.kv import KVShape

_MAX_SLOTS = 2**31 - 1  # slots are int32
_USEFUL_CONTEXTS = 64  # the default budget holds no more whole contexts than this
_CPU_SHARE, _CPU_LIMIT = 0.25, 4 << 30
_CUDA_SHARE = 0.85
# One whole context may take this share of free memory where the default budget does not hold it.
_CPU_CONTEXT_SHARE = 0.6


def check_room(
    model_bytes: int, shape: KVShape, device: torch.device, budget_bytes: int = 0
) -> None:
    """Check before a model is loaded whether it fits into free memory together with `budget_bytes`
    of K/V; without a budget, together with K/V of the fewest tokens that can be served.

    Raises:
        ConfigError: it does not fit; gives the sizes.
    """
    kv_bytes, free = budget_bytes or MIN_SLOTS * shape.slot_bytes, free_bytes(device)
    if model_bytes + kv_bytes <= free:
        return
    what = "kv_budget" if budget_bytes else f"keys and values of {MIN_SLOTS} tokens"
    limit = f" (the limit is {_gib(THIS.memory_limit())})" if device.type == "cpu" else ""
    raise ConfigError(
        f"The model takes {_gib(model_bytes)} and {what} {_gib(kv_bytes)}, but only {_gib(free)} "
        f"of memory are free{limit}."
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):,.2f} GiB"


def slots_for_budget(
    slot_bytes: int,
    context_length: int,
    device: torch.device,
    budget_bytes: int = 0,
    share: float = 0.0,
) -> int:
    """The number of slots of this size that `budget_bytes` hold; if it is 0, that `share` of the
    free memory holds; if both are 0, that the default share holds.

    Raises:
        ConfigError: the budget, or free memory, holds fewer than 64 tokens; or less is free than
            the budget.
    """
    size, free = slot_bytes, free_bytes(device)
    if budget_bytes > free:
        raise ConfigError(
            f"kv_budget is {_gib(budget_bytes)}, but beside the model {_gib(free)} of memory are "
            "free."
        )
    budget_bytes = budget_bytes or int(free * share)
    slots = budget_bytes // size if budget_bytes else _default_slots(size, context_length, device)
    if slots < MIN_SLOTS:
        holder = "The K/V budget" if budget_bytes else "Free memory"
        raise ConfigError(
            f"{holder} holds {slots} tokens at {size:,} bytes each; at least {MIN_SLOTS} "
            "are needed "
            f"({MIN_SLOTS * size:,} bytes)."
        )
    return min(slots, _MAX_SLOTS)


def bounded_slots(
    slot_bytes: int, num_slots: int, device: torch.device, least_bytes: int, most_bytes: int
) -> tuple[int, int]:
    """The slots of the budget at start and of the pool, for a budget that moves between these two
    sizes and would begin at `num_slots`.

    On a CPU the pool is only reserved, and may be as large as the memory that is there; on CUDA it
    must be free.

    Raises:
        ConfigError: the pool holds fewer than 64 tokens or is too large, or less is free than the
            smallest budget.
    """
    free = free_bytes(device)
    if least_bytes > free:
        raise ConfigError(
            f"kv_budget_min is {_gib(least_bytes)}, but beside the model {_gib(free)} of memory "
            "are free."
        )
    largest = THIS.memory_limit() if device.type == "cpu" else free
    if most_bytes > largest:
        raise ConfigError(
            f"kv_budget_max is {_gib(most_bytes)}, more than the {_gib(largest)} of memory that "
            "there are."
        )
    size = slot_bytes
    pool_slots = min(most_bytes // size, _MAX_SLOTS)
    if pool_slots < MIN_SLOTS:
        raise ConfigError(
            f"kv_budget_max holds {pool_slots} tokens at {size:,} bytes each; at least {MIN_SLOTS} "
            f"are needed ({MIN_SLOTS * size:,} bytes)."
        )
    return min(max(num_slots, least_bytes // size), pool_slots), pool_slots


def _default_slots(size: int, context_length: int, device: torch.device) -> int:
    free = free_bytes(device)
    if device.type == "cuda":
        share, limit = free * _CUDA_SHARE, free * _CUDA_SHARE
    else:
        share, limit = min(free * _CPU_SHARE, _CPU_LIMIT), free * _CPU_CONTEXT_SHARE
    wanted = max(share, min(context_length * size, limit))
    return min(int(wanted) // size, context_length * _USEFUL_CONTEXTS)


def free_bytes(device: torch.device) -> int:
    """Bytes of memory that can be allocated now on `device`; on a CPU never more than a container's
    limit leaves.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return THIS.free_bytes()

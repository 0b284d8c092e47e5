"""Which dtype a model is served in, and what is said of it."""

from __future__ import annotations

from typing import Literal

import torch

from radixserve.errors import ConfigError
from radixserve.kernels.cpu import levels
from radixserve.kernels.cpu.levels import Level
from radixserve.tensors.kv import KV_DTYPES

Wanted = Literal["auto", "float32", "bfloat16", "float16"]

_NAMED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_for(wanted: Wanted, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of weights, activations, K and V, where a setting asks for `wanted` and most of the
    checkpoint's weights are `stored` as another or the same one.

    What a setting names is used as it is. "auto" is the checkpoint's own half precision on CUDA,
    and bfloat16 for all other checkpoints. On the CPU it is bfloat16 for a bfloat16 checkpoint if
    the processor multiplies bfloat16 (AVX512-BF16 or AMX), which is 1.7 to several times as fast.
    Otherwise it is float32, which holds every value of both half precisions: no rounding is added,
    and K/V take twice the memory.
    """
    if wanted != "auto":
        return _NAMED[wanted]
    if device.type != "cuda":
        fast = levels.current() >= Level.AVX512_BF16
        return torch.bfloat16 if fast and stored == torch.bfloat16 else torch.float32
    return torch.float16 if stored == torch.float16 else torch.bfloat16


def kv_dtype_of(wanted: str, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of K/V beside weights of `dtype`.

    Raises:
        ConfigError: the device has no kernel for it.
    """
    chosen = dtype if wanted == "same" else KV_DTYPES[wanted]
    if device.type == "cuda" and chosen != dtype:
        raise ConfigError(
            f"kv_dtype is {wanted!r}, but on CUDA keys and values have the type of the weights "
            f"({dtype_name(dtype)}); use 'same'"
        )
    return chosen


def told(stored: torch.dtype, served: torch.dtype, quantize: str) -> str:
    """The served dtype for a log line, with the checkpoint's own where it is another, and what
    weights are quantised to.
    """
    name = dtype_name(served)
    if stored != served:
        name += f" (its weights are stored as {dtype_name(stored)})"
    return name if quantize == "none" else f"{name}, quantised to {quantize}"


def dtype_name(dtype: torch.dtype) -> str:
    """The short name of a dtype, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")

"""Writes tiny models as quantised checkpoints of several tools, by packing that is written apart
from what reads it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.checkpoints.damage import WEIGHTS, change_config
from tests.tiny import tiny_model

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Rounded:
    """A weight [outputs, inputs] rounded to codes by groups of inputs."""

    codes: torch.Tensor  # int64 [outputs, inputs]
    scales: torch.Tensor  # [outputs, groups]
    zeros: torch.Tensor  # int64, the same shape
    bits: int
    group: int

    def values(self) -> torch.Tensor:
        """The values [outputs, inputs], float32."""
        whole = self.codes.view(len(self.codes), -1, self.group)
        return ((whole - self.zeros[..., None]) * self.scales[..., None].float()).flatten(1)


def rounded(
    weight: torch.Tensor, bits: int, group: int, dtype: torch.dtype, symmetric: bool
) -> Rounded:
    """The nearest codes. Where they are not symmetric, zero points are 1 at least, because GPTQ
    cannot write others.
    """
    most = (1 << bits) - 1
    whole = weight.view(len(weight), -1, group)
    low, high = whole.amin(2), whole.amax(2)
    if symmetric:
        scales = (whole.abs().amax(2) / (most // 2)).to(dtype)
        zeros = torch.full(scales.shape, 1 << (bits - 1))
    else:
        scales = ((high - low) / most).to(dtype)
        zeros = (-low / scales.float()).round().long().clamp(1, most)
    codes = (whole / scales.float()[..., None] + zeros[..., None]).round().long().clamp(0, most)
    return Rounded(codes.flatten(1), scales, zeros, bits, group)


def words(codes: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Codes [rows, count] in words int32 [rows, words]; place p of a word has its code order[p]."""
    per_word = 32 // bits
    missing = -codes.shape[1] % per_word
    split = nn.functional.pad(codes, (0, missing)).view(len(codes), -1, per_word)
    places = order or tuple(range(per_word))
    found = sum(split[..., code] << (bits * place) for place, code in enumerate(places))
    assert isinstance(found, torch.Tensor)
    return torch.where(found >= 1 << 31, found - (1 << 32), found).to(torch.int32).contiguous()


def gptq(weight: Rounded, less: int = 1) -> Tensors:
    """As AutoGPTQ writes a weight."""
    return {
        "qweight": words(weight.codes, weight.bits).T.contiguous(),
        "qzeros": words(weight.zeros.T - less, weight.bits),
        "scales": weight.scales.T.contiguous(),
        "g_idx": (torch.arange(weight.codes.shape[1]) // weight.group).int(),
    }


def awq(weight: Rounded) -> Tensors:
    """As AutoAWQ writes a weight."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": words(weight.codes.T, 4, order),
        "qzeros": words(weight.zeros.T, 4, order),
        "scales": weight.scales.T.contiguous(),
    }


def packed(weight: Rounded) -> Tensors:
    """As compressed-tensors writes a weight in words."""
    found = {
        "weight_packed": words(weight.codes, weight.bits),
        "weight_scale": weight.scales,
        "weight_shape": torch.tensor(weight.codes.shape),
    }
    if (weight.zeros != 1 << (weight.bits - 1)).any():
        found["weight_zero_point"] = words(weight.zeros.T, weight.bits).T.contiguous()
    return found


def in_bytes(weight: Rounded) -> Tensors:
    """As compressed-tensors writes integers of 8 bits."""
    return {"weight": (weight.codes - 128).to(torch.int8), "weight_scale": weight.scales}


def compressed(format: str, **weights: Any) -> dict[str, Any]:
    """The `quantization_config` of compressed-tensors."""
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def write(
    folder: Path,
    name: str,
    settings: dict[str, Any],
    quantise: Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]],
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Write the tiny model of that name with the linears of its layers quantised: `quantise` gives
    the tensors of a weight, and its values; other weights are stored as `dtype`. Returns the model
    with the same values in float32.
    """
    tiny_model(name).save_pretrained(folder)
    stored, plain = load_file(folder / WEIGHTS), dict[str, torch.Tensor]()
    for each in list(stored):
        weight = stored.pop(each)
        if ".layers." in each and weight.dim() == 2 and not each.endswith("gate.weight"):
            parts, plain[each] = quantise(weight)
            prefix = each.removesuffix("weight")
            stored |= {f"{prefix}{part}": value for part, value in parts.items()}
        else:
            stored[each] = weight.to(dtype)
            plain[each] = stored[each].float()
    with tempfile.TemporaryDirectory() as other:
        save_file(plain, Path(other) / WEIGHTS, metadata={"format": "pt"})
        shutil.copy(folder / "config.json", other)
        model = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    change_config(folder, quantization_config=settings)
    return model

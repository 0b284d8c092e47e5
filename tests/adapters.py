"""Adapters in PEFT's files, with random factors, and the same models with the factors merged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(
    folder: Path,
    model: nn.Module,
    targets: tuple[str, ...] = ALL,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    seed: int = 0,
    only: str = "",
    size: float = 0.3,
    **config: Any,
) -> Path:
    """Write an adapter of the linears of `model` with these names, in layers whose names match the
    expression `only`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear | Conv1D) and name.rpartition(".")[2] in targets
        if linear and re.search(only, name):
            outputs, inputs = _shape(module)
            first = torch.randn(rank, inputs, generator=generator) * size
            second = torch.randn(outputs, rank, generator=generator) * size
            tensors[f"base_model.model.{name}.lora_A.weight"] = first
            tensors[f"base_model.model.{name}.lora_B.weight"] = second
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": list(targets)}
    if only:
        told["target_modules"] = ".*"
    (folder / "adapter_config.json").write_text(json.dumps(told | config))
    return folder


def _shape(module: nn.Module) -> tuple[int, int]:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    outputs, inputs = weight.T.shape if isinstance(module, Conv1D) else weight.shape
    return outputs, inputs


def merge(model: Any, folder: Path, scale: float) -> Any:
    """Add an adapter to the weights of a transformers model, which is returned."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, first in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = model.get_submodule(name[len("base_model.model.") : -len(".lora_A.weight")])
            second = tensors[name.replace("lora_A", "lora_B")]
            delta = scale * (second @ first)
            with torch.no_grad():
                module.weight += delta.T if isinstance(module, Conv1D) else delta
    return model

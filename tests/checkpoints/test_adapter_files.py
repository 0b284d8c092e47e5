"""What is read of an adapter's folder, and what is refused before anything large is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from radixserve.checkpoints.adapter_config import read_config
from radixserve.checkpoints.adapter_files import open_adapter, refuse_missing
from radixserve.errors import AdapterRefused

MODULE = "model.layers.3.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj"]}


def folder_of(path: Path, config: Any = CONFIG, **tensors: torch.Tensor) -> Path:
    """A folder with an adapter of one module; `tensors` are its factors by A and B."""
    path.mkdir(exist_ok=True)
    content = config if isinstance(config, bytes) else json.dumps(config).encode()
    (path / "adapter_config.json").write_bytes(content)
    factors = {"A": torch.ones(4, 8), "B": torch.ones(6, 4)} | tensors
    named = {f"base_model.model.{MODULE}.lora_{each}.weight": t for each, t in factors.items()}
    save_file(named, path / "adapter_model.safetensors")
    return path


def test_the_pair_of_a_module_is_read(tmp_path: Path) -> None:
    first, second = torch.randn(4, 8).half(), torch.randn(6, 4).bfloat16()
    opened = open_adapter(folder_of(tmp_path, A=first, B=second))
    (pair,) = opened.pairs
    assert (pair.module, pair.rank, pair.inputs, pair.outputs) == (MODULE, 4, 8, 6)
    assert pair.scale == 1.5
    found = pair.read()
    assert torch.equal(found[0], first.float())
    assert torch.equal(found[1], second)
    assert opened.num_bytes == 4 * (32 + 24)
    refuse_missing(opened, [MODULE, "model.layers.3.self_attn.k_proj"])
    with pytest.raises(AdapterRefused, match=r"lacks 1 modules .*: model\.layers\.4"):
        refuse_missing(opened, [MODULE, "model.layers.4.self_attn.q_proj"])


@pytest.mark.parametrize(
    ("more", "module", "rank", "scale"),
    [
        ({}, MODULE, 4, 1.5),
        ({"use_rslora": True}, MODULE, 4, 3.0),
        ({"rank_pattern": {"q_proj": 9}}, MODULE, 9, 6 / 9),
        ({"rank_pattern": {r"layers\.3\..*": 2}, "alpha_pattern": {MODULE: 5}}, MODULE, 2, 2.5),
        ({"alpha_pattern": {r".*\.[4-9]\..*": 5}}, MODULE, 4, 1.5),
        ({"rank_pattern": {"self_attn.q_proj": 16}, "use_rslora": True}, MODULE, 16, 1.5),
    ],
)
def test_ranks_and_scales(
    tmp_path: Path, more: dict[str, Any], module: str, rank: int, scale: float
) -> None:
    config = read_config(folder_of(tmp_path, CONFIG | more))
    assert config.rank_of(module) == rank
    assert math.isclose(config.scale_of(module), scale)


def test_which_modules_are_named(tmp_path: Path) -> None:
    def names(module: str, **more: Any) -> bool:
        return read_config(folder_of(tmp_path, CONFIG | more)).names(module)

    assert names(MODULE)
    assert not names("model.layers.3.self_attn.not_q_proj")
    assert not names("model.layers.3.self_attn.k_proj")
    assert names("model.layers.3.self_attn.k_proj", target_modules="all-linear")
    assert not names(MODULE, exclude_modules=["q_proj"])
    assert names(MODULE, layers_to_transform=3)
    assert not names(MODULE, layers_to_transform=[0, 2])


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (b"{", "Cannot use .*adapter_config.json"),
        (b"[]", "holds no object"),
        (b"[" * 100_000, "Cannot use"),
        ({}, "of the kind None"),
        ({"peft_type": "IA3"}, "of the kind 'IA3', not LORA"),
        (CONFIG | {"use_dora": True}, r"use_dora \(weights that are decomposed"),
        (CONFIG | {"modules_to_save": ["lm_head"]}, "modules that are trained whole"),
        (CONFIG | {"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        (CONFIG | {"bias": "lora_only"}, "trained biases"),
        (CONFIG | {"init_lora_weights": "pissa"}, "changes the model's own"),
        (CONFIG | {"shiny": 3}, r"shiny \(a field that this version does not know"),
        (CONFIG | {"r": 0}, "a rank is below 1"),
        (CONFIG | {"r": "big"}, "Expected `int`"),
        (CONFIG | {"lora_alpha": 1e999}, "Cannot use"),
        (CONFIG | {"rank_pattern": {"(": 3}}, "Cannot use"),
        (CONFIG | {"rank_pattern": {"q_proj": 8}}, "not of rank 8"),
        (CONFIG | {"target_modules": ["k_proj"]}, "which its configuration does not"),
    ],
)
def test_configurations_are_refused_by_name(tmp_path: Path, config: Any, why: str) -> None:
    with pytest.raises(AdapterRefused, match=why):
        open_adapter(folder_of(tmp_path, config))


def test_tensors_are_refused_by_name(tmp_path: Path) -> None:
    file = folder_of(tmp_path) / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterRefused, match="is damaged"):
        open_adapter(tmp_path)
    file.unlink()
    with pytest.raises(AdapterRefused, match="There is no adapter_model"):
        open_adapter(tmp_path)
    name = f"base_model.model.{MODULE}"
    for tensors, why in (
        ({f"{name}.lora_A.weight": torch.ones(4, 8)}, "has no .*lora_B"),
        ({f"{name}.weight": torch.ones(4, 8)}, "which is no factor"),
        ({f"{name}.lora_A.weight": torch.ones(4, 8, dtype=torch.int8)}, "no matrix of floats"),
        ({f"{name}.lora_A.weight": torch.ones(4)}, "no matrix of floats"),
        ({}, "holds no tensors"),
    ):
        save_file(tensors, file)
        with pytest.raises(AdapterRefused, match=why):
            open_adapter(tmp_path)
    for value in (math.nan, math.inf):
        folder_of(tmp_path, A=torch.full((4, 8), value))
        with pytest.raises(AdapterRefused, match=r"NaN|not finite"):
            open_adapter(tmp_path).pairs[0].read()
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(AdapterRefused, match="There is no adapter_config"):
        open_adapter(tmp_path)

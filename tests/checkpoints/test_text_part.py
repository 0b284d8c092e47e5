"""Wrappers of text models with images: the text part is served, or the model is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedModel

from radixserve.checkpoints.text_part import text_names, text_part
from radixserve.errors import ModelRefused
from radixserve.model.load import load_model
from radixserve.model.probes import logits_in_chunks
from tests.tiny import CPU, VOCAB

TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def wrapper(kind: str) -> PreTrainedModel:
    config = CONFIG_MAPPING[kind]
    parts: dict[str, Any] = {"text_config": TEXT, "vision_config": VISION}
    if kind == "llava":
        parts["text_config"] = {**TEXT, "model_type": "qwen2"}
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config(**parts)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) / 10)
    return model


@pytest.mark.parametrize("kind", ["gemma3", "llava", "mistral3"])
def test_its_text_part_computes_what_the_wrapper_does(kind: str, tmp_path: Path) -> None:
    model = wrapper(kind)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), CPU, torch.float32)
    assert loaded.decoder is not None
    tokens = torch.arange(40) * 7 % VOCAB
    with torch.inference_mode():
        expected = model(input_ids=tokens[None]).logits[0]
    found = logits_in_chunks(loaded, tokens, (17, 1, 22))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("paligemma", "both directions"),
        ("qwen2_5_vl", r"\(qwen2_5_vl_text\) is no model of its own"),
    ],
)
def test_what_has_no_text_model_of_its_own_is_refused_by_name(kind: str, why: str) -> None:
    with pytest.raises(ModelRefused, match=why):
        text_part(CONFIG_MAPPING[kind]())


def test_names_of_older_and_newer_files_lead_to_the_same_weights() -> None:
    names = ["language_model.model.norm.weight", "language_model.lm_head.weight", "vision_tower.x"]
    assert text_names(names) == {names[0]: "model.norm.weight", names[1]: "lm_head.weight"}
    assert text_names(["model.language_model.norm.weight"]).popitem()[1] == "model.norm.weight"

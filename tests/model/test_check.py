"""What cannot be served exactly is refused at load, each kind with its own sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    BigBirdConfig,
    Gemma4TextConfig,
    JambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PhimoeConfig,
    PretrainedConfig,
    Qwen2Config,
    T5Config,
)

from radixserve.checkpoints.supported import check_config
from radixserve.checkpoints.windows import window_of
from radixserve.errors import ModelRefused
from radixserve.model.check import Expected
from radixserve.model.load import load_model, prepare_model
from radixserve.model.probes import NUM_PROBE_TOKENS
from tests.tiny import CPU, VOCAB, tiny_model

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
}

REFUSED: list[tuple[PretrainedConfig, str]] = [
    (T5Config(), "encoder-decoder"),
    (BartConfig(), "encoder-decoder"),
    (BertConfig(is_decoder=True, add_cross_attention=True), "cross attention"),
    (MistralConfig(**SMALL, sliding_window=0), "sliding window of 0 tokens"),
    (
        Llama4TextConfig(**SMALL, layer_types=["chunked_attention"] * 2),
        "chunked attention; only full and sliding",
    ),
    (MambaConfig(), "layers with a state"),
    (Gemma4TextConfig(), r"different sizes \(head_dim\)"),
    (JambaConfig(), "layers with a state"),
    (LlamaConfig(**SMALL, rope_parameters=DYNAMIC), "dynamic rotary positions"),
    (LlamaConfig(**SMALL, rope_parameters=LONG), "longrope rotary positions"),
]


@pytest.mark.parametrize(
    ("config", "words"), REFUSED, ids=lambda value: getattr(value, "model_type", None)
)
def test_a_configuration_is_refused_by_its_sentence(config: PretrainedConfig, words: str) -> None:
    with pytest.raises(ModelRefused, match=words):
        check_config(config)


def test_a_window_is_that_of_the_layer_and_shorter_than_the_context() -> None:
    every = MistralConfig(**SMALL, sliding_window=64, max_position_embeddings=512)
    some = Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=64, max_window_layers=1)
    whole = MistralConfig(**SMALL, sliding_window=512, max_position_embeddings=512)
    found = [[window_of(each, layer) for layer in range(2)] for each in (every, some, whole)]
    assert found == [[64, 64], [None, 64], [None, None]]


def test_a_class_that_ignores_the_window_of_its_configuration_is_refused() -> None:
    """The probe is shorter than the window."""
    config = PhimoeConfig(**SMALL, sliding_window=64, num_local_experts=2, num_experts_per_tok=2)
    with pytest.raises(ModelRefused, match=r"full attention in layer 0, .* 64 tokens"):
        prepare_model(AutoModelForCausalLM.from_config(config), CPU)


def test_a_model_that_does_not_use_the_attention_interface_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(
        BigBirdConfig(**SMALL, is_decoder=True, attention_type="original_full")
    )
    with pytest.raises(ModelRefused):
        prepare_model(model, CPU)


def test_a_model_that_attends_in_both_directions_is_refused_by_its_logits() -> None:
    config = BertConfig(**{**SMALL, "max_position_embeddings": 512}, is_decoder=False)
    with pytest.raises(ModelRefused):
        prepare_model(AutoModelForCausalLM.from_config(config), CPU)


def test_a_model_that_hides_a_change_of_attention_is_refused_by_its_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    other = Expected(torch.randn(1, NUM_PROBE_TOKENS, VOCAB), 1e-6, torch.float32)
    monkeypatch.setattr("radixserve.model.load.own_logits", lambda *_: other)
    with pytest.raises(ModelRefused, match="not what its configuration and its calls say"):
        prepare_model(model, CPU)


def test_a_folder_without_a_model_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="Cannot load"):
        load_model(str(tmp_path), CPU, torch.float32)


def test_a_saved_model_is_loaded_with_its_facts(tmp_path: Path) -> None:
    tiny_model("llama_grouped").save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), CPU, torch.float32)
    shape = loaded.shape
    assert (shape.layers, shape.kv_heads, shape.k_dim, loaded.vocab_size) == (2, 2, 16, VOCAB)
    assert (loaded.context_length, loaded.eos_token_ids, loaded.dtype) == (512, (1,), torch.float32)
    assert (loaded.exact, loaded.attention) == (True, "radixserve_cpu")


def test_float16_on_the_cpu_works_and_claims_nothing(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), CPU, torch.float16)
    assert loaded.dtype == torch.float16
    assert not loaded.exact
    assert loaded.inexact_reason == "float16 linears on the CPU depend on the number of rows"

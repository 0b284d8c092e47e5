"""Models whose attention is more than plain: windows, softcaps, sinks. Their greedy tokens are
those of transformers beyond the window, and a warm prefix gives the bits of a cold one, cut at and
across the window.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CwmConfig,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    MistralConfig,
    Olmo3Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    SmolLM3Config,
    Starcoder2Config,
)

from radixserve.checkpoints.windows import window_of
from radixserve.model.decoder import Decoder
from radixserve.model.load import prepare_model
from radixserve.model.read_family import ROWS
from radixserve.model.runner import Runner
from radixserve.tensors.kv import KVPool
from tests.tiny import CPU, IN_PANELS, VOCAB, chunks_of, greedy

WINDOW = 24
NUM_TOKENS, NUM_NEW = 120, 30
SIZE: dict[str, Any] = {**IN_PANELS, "num_key_value_heads": 2, "sliding_window": WINDOW}
HALF = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "mistral": lambda: MistralConfig(**SIZE),
    "mistral, a long window": lambda: MistralConfig(**{**SIZE, "sliding_window": 70}),
    "qwen2": lambda: Qwen2Config(**SIZE, use_sliding_window=True, max_window_layers=1),
    "phi3": lambda: Phi3Config(**SIZE),
    "starcoder2": lambda: Starcoder2Config(**SIZE),
    "cwm": lambda: CwmConfig(**SIZE, layer_types=HALF),
    "exaone4": lambda: Exaone4Config(**SIZE, layer_types=HALF),
    "smollm3": lambda: SmolLM3Config(**SIZE, use_sliding_window=True, layer_types=HALF),
    "gemma2": lambda: Gemma2Config(
        **SIZE, head_dim=16, query_pre_attn_scalar=16, attn_logit_softcapping=2.0
    ),
    "gemma3": lambda: Gemma3TextConfig(**SIZE, head_dim=16, layer_types=HALF),
    "cohere2": lambda: Cohere2Config(**SIZE, layer_types=HALF),
    "olmo3": lambda: Olmo3Config(**SIZE, layer_types=HALF),
    "gpt_oss": lambda: GptOssConfig(
        **SIZE, head_dim=16, layer_types=HALF, num_local_experts=2, num_experts_per_tok=1
    ),
}


def model_of(name: str) -> PreTrainedModel:
    """The transformers model itself, with sinks that are seen; each time a new one, the same."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            elif key.endswith("sinks"):
                parameter.normal_()
    return model


@cache
def runner_of(name: str) -> Runner:
    loaded = prepare_model(model_of(name), CPU)
    return Runner(loaded, KVPool(loaded.shape, NUM_TOKENS + NUM_NEW, CPU))


def prompt() -> list[int]:
    ids: list[int] = np.random.default_rng(3).integers(2, VOCAB, NUM_TOKENS).tolist()
    return ids


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_transformers(name: str) -> None:
    model, ids = model_of(name), torch.tensor([prompt()])
    model.generation_config.eos_token_id = None
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_NEW, do_sample=False
    )
    found = greedy(runner_of(name), prompt(), NUM_NEW)
    assert runner_of(name).loaded.exact
    assert found == expected[0, NUM_TOKENS:].tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_warm_prefix_gives_the_bits_of_a_cold_one(name: str) -> None:
    runner, slots = runner_of(name), range(NUM_TOKENS)
    [cold] = [runner.forward([each]).clone() for each in chunks_of(prompt(), slots, ())]
    for cut in (1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 64, 100, NUM_TOKENS - 1):
        _, warm = (runner.forward([each]).clone() for each in chunks_of(prompt(), slots, (cut,)))
        assert torch.equal(warm, cold[cut:]), cut


@pytest.mark.parametrize("name", CONFIGS)
def test_the_fast_forward_has_the_windows(name: str) -> None:
    decoder = runner_of(name).loaded.decoder
    assert isinstance(decoder, Decoder) == (type(model_of(name)) in ROWS)
    if isinstance(decoder, Decoder):
        config = model_of(name).config
        found = [each.attention.attends.window for each in decoder.weights.layers]
        assert found == [window_of(config, layer) for layer in range(2)]
        assert any(found)

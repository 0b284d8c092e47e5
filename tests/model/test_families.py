"""Each family that our decoder computes: a tiny random model says what transformers says, and its
bits stay the same however a sequence is cut and whoever shares its steps.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from radixserve.errors import ModelRefused
from radixserve.model.families import FAMILIES
from radixserve.model.family_rules import in_groups
from radixserve.model.load import prepare_model
from radixserve.model.mixtures import MIXTURES
from radixserve.model.runner import Runner
from radixserve.step import Logits
from tests.tiny import CPU, VOCAB, chunk, chunks_of, greedy, runner_of
from tests.tiny_families import random_model

WINDOWED = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
LATENT = {"num_key_value_heads": 4, "head_dim": 8}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_hidden_layers": 3,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
}
MAMBA2: dict[str, Any] = {
    "num_hidden_layers": 3,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 12,
    "mamba_n_groups": 1,
}
HYBRID = {**MAMBA2, "layer_types": ["mamba", "attention", "mamba"]}
# Tiny models by name: the model type, then what is unlike the defaults of its class.
TINY: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bamba": {**MAMBA2, "attn_layer_indices": [1]},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "bloom six heads": {"hidden_size": 96, "n_head": 6},
    "codegen": {},
    "cohere": {"use_qk_norm": True, "logit_scale": 0.3},
    "cohere2": WINDOWED,
    "cwm": WINDOWED,
    "ernie4_5": {"use_bias": True},
    "exaone4": WINDOWED,
    "exaone4 full": {"sliding_window": None, "layer_types": ["full_attention"] * 2},
    "falcon": {"num_kv_heads": None},
    "falcon alibi": {"alibi": True},
    "falcon new": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon sequential": {"multi_query": False, "parallel_attn": False, "num_kv_heads": None},
    "gemma": {},
    "gemma2": {**WINDOWED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5},
    "gemma3_text": {**WINDOWED, "final_logit_softcapping": 1.5},
    "glm": {},
    "glm4": {},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "gpt_bigcode": {},
    "gpt_bigcode many": {"multi_query": False},
    "gptj": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 5},
    "gpt_neox": {},
    "gpt_neox sequential": {"use_parallel_residual": False},
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.3,
        "logits_scaling": 5.0,
        "attention_multiplier": 0.2,
    },
    "granite_swa": {
        **WINDOWED,
        "layer_rope_theta": [10000.0, 0.0],
        "residual_multiplier": 0.3,
        "logits_scaling": 5.0,
    },
    "helium": {},
    "hunyuan_v1_dense": {},
    "hyperclovax": {"use_post_norm": True, "residual_multiplier": 0.3, "logits_scaling": 0.5},
    "jais2": {},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
    "llama": {},
    "megatron-bert": {"is_decoder": True},
    "minicpm3": LATENT,
    "ministral": WINDOWED,
    "mistral": {"sliding_window": None},
    "mistral windowed": {"sliding_window": 5},
    "mpt": {"attn_config": {"clip_qkv": 1.0, "softmax_scale": 0.2}},
    "mpt six heads": {"d_model": 96, "n_heads": 6},
    "nanochat": {},
    "nemotron": {},
    "olmo": {"clip_qkv": 1.0},
    "olmo2": {},
    "olmo3": WINDOWED,
    "openai-gpt": {},
    "opt": {},
    "opt 350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {"qk_layernorm": True},
    "phi3": {"sliding_window": 5},
    "qwen2": {},
    "qwen3_5_text": {**LINEAR, "num_key_value_heads": 1},
    "qwen2 windowed": {**WINDOWED, "use_sliding_window": True},
    "qwen3": {},
    "rembert": {"is_decoder": True, "input_embedding_size": 32, "output_embedding_size": 48},
    "roformer": {"is_decoder": True},
    "seed_oss": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {"use_qkv_bias": True},
    "stablelm parallel": {"use_parallel_residual": True, "qk_layernorm": True},
    "starcoder2": {"sliding_window": None},
    "trocr": {"scale_embedding": True},
    "vaultgemma": {**WINDOWED, "attn_logit_softcapping": 2.0},
    "xglm": {},
    "youtu": LATENT,
}
# The same with mixtures of experts.
MIXED: dict[str, dict[str, Any]] = {
    "aria_text": {},
    "axk1": LATENT,
    "cohere2_moe": {**WINDOWED, "num_shared_experts": 1},
    "cohere2_moe sigmoid": {"expert_selection_fn": "sigmoid", "norm_topk_prob": False},
    "deepseek_v2": {**LATENT, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    "deepseek_v3": {**LATENT, "n_group": 4, "topk_group": 2, "q_lora_rank": None},
    "dots1": {"n_shared_experts": 1, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
    "ernie4_5_moe": {},
    "exaone_moe": WINDOWED,
    "flex_olmo": {},
    "flint": WINDOWED,
    "glm4_moe": {"first_k_dense_replace": 1, "routed_scaling_factor": 2.5},
    "glm4_moe_lite": LATENT,
    "gpt_oss": {**WINDOWED, "swiglu_limit": 0.3},
    "granitemoe": {"residual_multiplier": 0.3, "attention_multiplier": 0.2},
    "granitemoe_swa": {"shared_intermediate_size": 40, **TINY["granite_swa"]},
    "granitemoehybrid": {**HYBRID, "position_embedding_type": "rope", "residual_multiplier": 0.3},
    "granitemoehybrid dense": {**HYBRID, "num_local_experts": 0},
    "granitemoeshared": {"shared_intermediate_size": 40},
    "hunyuan_v1_moe": {},
    "hy_v3": {"router_scaling_factor": 1.5},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention", "conv"],
        "num_hidden_layers": 3,
        "num_dense_layers": 1,
    },
    "mellum": {},
    "minimax_m2": {},
    "mixtral": {},
    "olmoe": {"norm_topk_prob": False},
    "qwen2_moe": {},
    "qwen3_5_moe_text": LINEAR,
    "qwen3_next": {**LINEAR, "mlp_only_layers": [1], "norm_topk_prob": True},
    "qwen3_moe": {"mlp_only_layers": [0], "norm_topk_prob": True},
    "solar_open": {},
}
ALL = TINY | MIXED
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size",), VOCAB),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"), 100),
    **dict.fromkeys(("decoder_ffn_dim",), 100),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("decoder_layers",), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads",), 2),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 24),
    **dict.fromkeys(("qk_rope_head_dim",), 8),
    **dict.fromkeys(("rotary_dim",), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 3),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 36),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 512),
    **dict.fromkeys(("bos_token_id",), 0),
    **dict.fromkeys(("pad_token_id", "eos_token_id"), 1),
}
PROMPT = [5, 90, 17, 3, 44, 44, 8, 61, 2, 77, 31, 12]
IDS = torch.randint(0, VOCAB, (150,), generator=torch.Generator().manual_seed(0)).tolist()
SLOTS = torch.randperm(512, generator=torch.Generator().manual_seed(0)).tolist()


def tiny(name: str) -> PreTrainedModel:
    """The model itself, untouched by us."""
    kind = CONFIG_MAPPING[name.split()[0]]
    names = {field.name for field in dataclasses.fields(kind)}
    sizes = {field: size for field, size in SIZES.items() if field in names}
    return random_model(kind(**sizes | ALL[name]))


@cache
def runner(name: str) -> Runner:
    loaded = prepare_model(tiny(name), CPU)
    return runner_of(loaded, 512)


def test_each_class_of_the_table_is_tried() -> None:
    tried = {AutoModelForCausalLM._model_mapping[CONFIG_MAPPING[name.split()[0]]] for name in ALL}
    assert tried == {*FAMILIES, *MIXTURES}


@pytest.mark.parametrize("name", ALL)
def test_greedy_tokens_are_those_of_transformers_generate(name: str) -> None:
    model, ids = tiny(name), torch.tensor([PROMPT])
    model.generation_config.eos_token_id = None
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False
    )
    found = runner(name)
    assert found.loaded.generic_reason is None
    assert greedy(found, PROMPT, 16) == output[0, len(PROMPT) :].tolist()


def has_the_same_bits_in_any_step(run: Runner) -> None:
    """Cut at several places, over slots that lie anywhere, and in a batch."""
    assert run.loaded.exact
    assert run.loaded.decoder is not None
    whole = run.forward([chunk(IDS, 0, range(150))])
    parts = [run.forward([each]) for each in chunks_of(IDS, SLOTS, (1, 2, 40, 71, 72, 100, 140))]
    assert torch.equal(torch.cat(parts), whole)
    mates = [chunk(IDS[:20], 0, SLOTS[200:]), chunk(IDS[7:60], 0, SLOTS[300:])]
    ours = chunk(IDS[100:103], 100, SLOTS)
    together = run.forward([mates[0], ours, mates[1]])
    assert torch.equal(together[20:23], whole[100:103])
    ours.logits = mates[0].logits = mates[1].logits = Logits.LAST
    assert torch.equal(run.forward([mates[0], ours, mates[1]])[1], whole[102])


@pytest.mark.parametrize("name", ALL)
def test_neither_cuts_nor_batch_mates_change_a_bit(name: str) -> None:
    has_the_same_bits_in_any_step(runner(name))


@pytest.mark.parametrize("name", ALL)
def test_it_serves_bfloat16_as_exactly(name: str) -> None:
    loaded = prepare_model(tiny(name).bfloat16(), CPU)
    has_the_same_bits_in_any_step(runner_of(loaded, 512))


def test_what_neither_forward_serves_is_refused_with_both_reasons() -> None:
    kind = CONFIG_MAPPING["big_bird"]
    sizes = {"vocab_size": VOCAB, "hidden_size": 64, "num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(kind(**sizes, num_hidden_layers=1)).eval()
    with pytest.raises(ModelRefused, match="be replaced, and the fast forward does not serve it"):
        prepare_model(model, CPU)


def test_grouped_heads_lie_behind_their_queries() -> None:
    assert in_groups(4, 2, 1).tolist() == [0, 1, 4, 5, 2, 6, 3, 7]
    assert in_groups(2, 2, 10).tolist() == [0, 30, 10, 40, 20, 50]

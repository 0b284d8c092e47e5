"""A tiny random model of every decoder-only class of the installed transformers, by its model type.

The default configuration of the class is made small: fields whose names are in SIZES get the
value there, if the class has them, and FAMILIES says what else a class needs. So a class keeps
whatever its defaults say about norms, positions, kinds of layers and experts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 97
WINDOW = 16

SIZES: dict[str, Any] = {
    "initializer_range": 0.02,
    **dict.fromkeys(("bos_token_id",), 0),
    **dict.fromkeys(("pad_token_id", "eos_token_id"), 1),
    "is_decoder": True,  # of classes that may also encode
    **dict.fromkeys(("vocab_size",), VOCAB),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "d_embed"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "dff"), 96),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "dim_ff", "intermediate_size_mlp"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "dim_head", "v_head_dim", "kv_channels"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 512),
    **dict.fromkeys(("sliding_window", "window_size", "sliding_window_size"), WINDOW),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 32),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim",), 16),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 16),
    **dict.fromkeys(("mamba_n_heads", "n_mamba_heads", "mamba_num_heads"), 4),
}

LATENT: dict[str, Any] = {"head_dim": 8, "num_key_value_heads": 4}  # that of rotary positions
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "axk1": LATENT,
    "axk2": LATENT,
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {
        "encoder_hash_byte_group_vocab": 50,
        "encoder_config": {**TINY, "hidden_size_global": 64},
        "decoder_config": {**TINY, "hidden_size_global": 64},
        "global_config": TINY,
        "patcher_config": TINY,
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": PLAIN_ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 8, "moe_top_k": 2},
        "rope_parameters": PLAIN_ROPE,
    },
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "deepseek_v32": LATENT,
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {**LATENT, "index_n_heads": 2, "use_sliding_window": False},
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": LATENT,
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 16,
        "laurel_rank": 16,
    },
    "gemma4_text": {
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 16,
        "global_head_dim": 16,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "inkling_text": {
        "swa_head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
    },
    "inkling2_text": {
        "swa_head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
    },
    "kimi_linear": {**LATENT, "linear_head_dim": 16, "linear_num_heads": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {**LATENT, "expert_ffn_hidden_size": 32, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "minicpm3": LATENT,
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "full_attention", "mlp", "moe"],
        "n_groups": 2,
        "mamba_head_dim": 32,
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "reformer": {
        "axial_pos_embds_dim": [32, 32],
        "axial_pos_shape": [16, 32],
        "attention_head_size": 16,
        "feed_forward_size": 96,
        "num_buckets": 4,
    },
    "roc_bert": {"shape_vocab_size": 100, "pronunciation_vocab_size": 100},
    "xlm": {"emb_dim": 64},
    "xmod": {"default_language": "en_XX"},
    "youtu": LATENT,
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba": {"layers_block_type": ["linear_attention", "linear_attention", "hybrid", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}


# Not tried: further model types of a class; wrappers of a text model that is tried itself; what
# generates no text; and drafts, which use the K/V of another model.
_OTHERS = {
    "dots3_note",
    "gemma3n",
    "gpt-sw3",
    "internlm3",
    "iquestcoder",
    "llama4",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen4_exp",
    "emu3",
    "moshi",
    "musicgen",
    "musicgen_melody",
    "gemma4_assistant",
    "gemma4_unified_assistant",
    "fuyu",
    "gemma3",
    "gemma4",
    "gemma4_unified",
    "got_ocr2",
    "moss_transcribe_diarize",
    "phi4_multimodal",
}
# The same classes with something that their default leaves out, or without something that it has.
VARIANTS: dict[str, dict[str, Any]] = {
    "gemma3_text: full attention": {"layer_types": ["full_attention"] * 4},
    "granitemoehybrid: attention only": {"layer_types": ["attention"] * 4, "num_local_experts": 0},
    "laguna: full attention": {"layer_types": ["full_attention"] * 4},
    "mistral: no window": {"sliding_window": None},
    "mixtral: no window": {"sliding_window": None},
    "phi3: no window": {"sliding_window": None},
    "phimoe: no window": {"sliding_window": None},
    "starcoder2: no window": {"sliding_window": None},
}

NAMES = sorted(
    [each for each in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if each not in _OTHERS] + [*VARIANTS]
)


def family_config(name: str) -> PretrainedConfig:
    """The configuration of a tiny model of NAMES."""
    model_type = name.split(":")[0]
    kind = CONFIG_MAPPING[model_type]
    own = {**FAMILIES.get(model_type, {}), **VARIANTS.get(name, {})}
    config: PretrainedConfig = kind(**{**_small(kind), **own})
    return config


def _small(kind: type[PretrainedConfig]) -> dict[str, Any]:
    """Arguments that make a configuration small, and those that it contains."""
    names = {field.name for field in dataclasses.fields(kind)}
    sizes = {name: value for name, value in SIZES.items() if name in names}
    parts = {
        name: _small(part) for name, part in kind.sub_configs.items() if part is not AutoConfig
    }
    return {**sizes, **parts}


def family_model(name: str, seed: int = 0) -> PreTrainedModel:
    """The tiny model, untouched by us."""
    return random_model(family_config(name), seed)


def random_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model whose weights are as far from the initial ones as those of `tests.tiny`; vectors
    (norms, biases, sinks) differ from their initial constants, too. So none can be left out
    unnoticed.
    """
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            else:
                parameter.add_(torch.randn(parameter.shape) / 10)
    return model

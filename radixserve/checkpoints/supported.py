"""Which configurations can be served: decoders with causal attention, full or over sliding windows,
whose K/V can be cut at any token. One sentence per refusal.

A configuration that hides something is refused later, by the load check (`model.check`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from radixserve.checkpoints.windows import SLIDING
from radixserve.errors import ModelRefused
from radixserve.rotary import rotary_refusal

_SERVED = ("full_attention", "attention", "global", SLIDING)
_PER_LAYER = {"head_dim", "num_attention_heads", "num_key_value_heads", "v_head_dim"}
_ENCODER = ("encoder_layers", "num_encoder_layers")
_RECURRENT = (
    "ssm_state_size",
    "state_size",
    "mamba_d_state",
    "mamba_expand",
    "lru_width",
    "linear_num_value_heads",
)
_RECURRENT_KINDS = ("mamba", "recurrent", "linear", "conv", "hybrid")
_FROM_PADDING = (
    "camembert",
    "data2vec-text",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
_OTHER_WAYS = {
    **dict.fromkeys(_FROM_PADDING, "counts positions from that of its padding token on"),
    "blt": "reads bytes in patches of its own choice, not tokens",
    "cpmant": "attends by segments of its prompt, in both directions",
    "longcat_flash": "has experts that compute nothing and a router in forms of its own",
    "reformer": "attends the tokens whose hashes are similar, not all earlier ones",
    "xlnet": "predicts tokens in an order of its own, not from left to right",
}
# Models whose layers with a state are served, and what these are called
_STATES_SERVED = {
    "bamba": ("linear_attention",),
    "granitemoehybrid": ("linear_attention",),
    "lfm2": ("conv",),
    "lfm2_moe": ("conv",),
    "qwen3_5_moe_text": ("linear_attention",),
    "qwen3_5_text": ("linear_attention",),
    "qwen3_next": ("linear_attention",),
}
_RECURRENT_TYPES = ("rwkv", "mamba", "mamba2", "xlstm", "recurrent_gemma", "falcon_mamba")


def check_config(config: PretrainedConfig) -> None:
    """Refuse a model whose configuration alone shows that it cannot be served.

    Raises:
        ModelRefused: one sentence gives the reason.
    """
    reason = _refusal(config)
    if reason:
        raise ModelRefused(f"The model ({config.model_type}) {reason}.")


def _refusal(config: PretrainedConfig) -> str | None:
    if config.model_type in _OTHER_WAYS:
        return _OTHER_WAYS[config.model_type]
    if config.is_encoder_decoder or any(_value(config, name) for name in _ENCODER):
        return "is an encoder-decoder; only decoder-only models are served"
    if _value(config, "add_cross_attention") or _value(config, "cross_attention_layers"):
        return "has cross attention; only decoder-only models are served"
    kinds = _value(config, "layer_types") or _value(config, "layers_block_type") or ()
    recurrent = _recurrent(config, kinds)
    if recurrent and config.model_type not in _STATES_SERVED:
        return (
            f"has layers with a state{recurrent}, and those of this model family are not computed "
            "here"
        )
    differing = _PER_LAYER & set(_value(config, "per_layer_attributes") or ())
    if differing:
        return f"has layers whose keys and values have different sizes ({min(differing)})"
    if not _value(config, "num_attention_heads"):
        return "has no attention heads (num_attention_heads)"
    return _attention_refusal(config, kinds)


def _attention_refusal(config: PretrainedConfig, kinds: Sequence[str]) -> str | None:
    served = (*_SERVED, *_STATES_SERVED.get(config.model_type, ()))
    unknown = [kind for kind in kinds if kind not in served]
    if unknown:
        kind = unknown[0].replace("_", " ")
        return f"has layers with {kind}; only full and sliding attention are served"
    window = _value(config, "sliding_window")
    if (not kinds or SLIDING in kinds) and window is not None and window < 1:
        return f"attends a sliding window of {window} tokens"
    return rotary_refusal(config)


def has_states(config: PretrainedConfig) -> bool:
    """Whether layers have a state, in a model that `check_config` lets pass."""
    return config.model_type in _STATES_SERVED


def _value(config: PretrainedConfig, name: str) -> Any:
    return getattr(config, name, None)


def _recurrent(config: PretrainedConfig, kinds: Sequence[str]) -> str:
    """Which kind of layers with a state there is (state-space, linear attention, recurrence,
    convolution), in parentheses; "" if there is none. Where a configuration lists the kinds of its
    layers, sizes of states may belong to kinds that are not among them.
    """
    found = [kind for kind in kinds for word in _RECURRENT_KINDS if word in kind]
    if found:
        return f" ({found[0].replace('_', ' ')})"
    sizes = not kinds and any(_value(config, name) for name in _RECURRENT)
    return f" ({config.model_type})" if sizes or config.model_type in _RECURRENT_TYPES else ""

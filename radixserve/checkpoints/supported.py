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
_MLA = ("kv_lora_rank", "qk_rope_head_dim")
_RECURRENT = (
    "ssm_state_size",
    "state_size",
    "mamba_d_state",
    "mamba_expand",
    "lru_width",
    "linear_num_value_heads",
)
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
    if config.is_encoder_decoder:
        return "is an encoder-decoder; only decoder-only models are served"
    if _value(config, "add_cross_attention") or _value(config, "cross_attention_layers"):
        return "has cross attention; only decoder-only models are served"
    if any(_value(config, name) for name in _MLA):
        return "uses multi-head latent attention, whose cache holds no plain K and V"
    kinds = _value(config, "layer_types") or _value(config, "layers_block_type") or ()
    if (
        config.model_type in _RECURRENT_TYPES
        or any(_value(config, name) for name in _RECURRENT)
        or _recurrent(kinds)
    ):
        return "has recurrent or state-space layers, whose state cannot be cut at a token"
    return _attention_refusal(config, kinds)


def _attention_refusal(config: PretrainedConfig, kinds: Sequence[str]) -> str | None:
    unknown = [kind for kind in kinds if kind not in _SERVED]
    if unknown:
        kind = unknown[0].replace("_", " ")
        return f"has layers with {kind}; only full and sliding attention are served"
    window = _value(config, "sliding_window")
    if (not kinds or SLIDING in kinds) and window is not None and window < 1:
        return f"attends a sliding window of {window} tokens"
    return rotary_refusal(config)


def _value(config: PretrainedConfig, name: str) -> Any:
    return getattr(config, name, None)


def _recurrent(kinds: Sequence[str]) -> bool:
    return any(
        "mamba" in kind or "recurrent" in kind or "linear" in kind or "conv" in kind
        for kind in kinds
    )

"""The model classes that our decoder computes, and what differs between them.

A class is in the table if its forward pass is the one of `model.decoder`: RMSNorm, attention with
rotary positions, a gated MLP with silu, all in this order. The table says what else its layers
have. A class that is not in it runs through transformers' own modules, with our linears and our
attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.model.decoder import Decoder
from radixserve.model.linear import FusedPart, PackedEmbedding, PackedLinear
from radixserve.model.weights import Layer, Sizes, Weights

ACTIVATIONS = ("silu",)


@dataclass(frozen=True, slots=True)
class Family:
    """What the layers of a class have beyond the common form."""

    head_norms: bool = False  # queries and keys are normed, head by head, before they are rotated


FAMILIES: dict[type[PreTrainedModel], Family] = {
    LlamaForCausalLM: Family(),
    MistralForCausalLM: Family(),
    Qwen2ForCausalLM: Family(),
    Qwen3ForCausalLM: Family(head_norms=True),
}


def decoder_of(model: PreTrainedModel) -> Decoder | None:
    """The decoder of a row-wise model on the CPU; None if its class is not in the table."""
    family = family_of(model)
    return Decoder(weights_of(model, family)) if family else None


def family_of(model: PreTrainedModel) -> Family | None:
    """The family of exactly this class; None if the decoder does not compute it."""
    known = FAMILIES.get(type(model))
    return known if known and model.config.hidden_act in ACTIVATIONS else None


def weights_of(model: Any, family: Family) -> Weights:
    """The weights and constants of a transformers model that was made row-wise
    (`model.rowwise`).
    """
    inner, embed = model.model, model.model.embed_tokens
    return Weights(
        sizes=Sizes(int(model.config.num_attention_heads), float(model.config.rms_norm_eps)),
        embedding=None if isinstance(embed, PackedEmbedding) else embed.weight,
        rotary=inner.rotary_emb,
        layers=[_layer(index, each, family) for index, each in enumerate(inner.layers)],
        norm=inner.norm.weight.float(),
        head=model.lm_head.packed,
    )


def _layer(index: int, layer: Any, family: Family) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        index=index,
        input_norm=layer.input_layernorm.weight.float(),
        qkv=_weight(attention.q_proj),
        q_norm=attention.q_norm.weight.float() if family.head_norms else None,
        k_norm=attention.k_norm.weight.float() if family.head_norms else None,
        scaling=float(attention.scaling),
        o=_weight(attention.o_proj),
        post_norm=layer.post_attention_layernorm.weight.float(),
        gate_up=_weight(mlp.gate_proj),
        down=_weight(mlp.down_proj),
    )


def _weight(module: PackedLinear | FusedPart) -> Gemm:
    """The packed weight that a module calls: its own, or the one fused of several modules."""
    return module.fused.weight if isinstance(module, FusedPart) else module.packed

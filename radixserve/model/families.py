"""The model classes that our decoder computes: where the modules of each are, and what its layers
do.

A class is one row of `FAMILIES`. Fields that a row leaves out are Llama's. What a module itself
tells is read from it: the epsilon of a norm, which activation it is, the scaling of attention. A
class that is not in the table runs through transformers' own modules, with our linears and our
attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
import transformers
from torch.nn import functional as F
from transformers import PreTrainedModel

from radixserve.kernels.attention import LayerAttention
from radixserve.kernels.cpu.activation import Activation
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.model.decoder import Decoder
from radixserve.model.linear import FusedPart, PackedEmbedding, PackedLinear
from radixserve.model.rotary_tables import ModuleTable, StoredTable
from radixserve.model.weights import (
    Attention,
    Embedding,
    Head,
    HeadNorm,
    Layer,
    Mlp,
    Norm,
    Rope,
    Rotary,
    Weights,
    places_in_order,
)

_ACTIVATIONS = {
    "SiLU": Activation.SILU,
    "SiLUActivation": Activation.SILU,
    "GELUActivation": Activation.GELU,
    "GELUTanh": Activation.GELU_TANH,
    "NewGELUActivation": Activation.GELU_TANH,
    "FastGELUActivation": Activation.GELU_TANH,
    "AccurateGELUActivation": Activation.GELU_TANH,
    "ReLU": Activation.RELU,
    "ReLUSquaredActivation": Activation.RELU_SQUARED,
    "XIELUActivation": Activation.XIELU,
}
_OLMO_EPSILON = 1e-5  # stands in the code of its norm only


@dataclass(frozen=True, slots=True)
class Scales:
    """Constants that a model multiplies by."""

    residual: float = 1.0  # what layers add to the stream
    logits: float = 1.0
    softcap: float | None = None  # of logits


def _always(part: Any) -> bool:
    return True


def _never(config: Any) -> bool:
    return False


def _unscaled(config: Any) -> Scales:
    return Scales()


def _no_positions(body: Any) -> None:
    return None


def _tables_of_module(body: Any) -> list[Rotary]:
    return [ModuleTable(body.rotary_emb)]


Places = Callable[[int, int, int], torch.Tensor]
"""Where heads begin in a row of q, k and v, from the numbers of heads, of key heads, and `dim`."""


@dataclass(frozen=True, slots=True)
class Family:
    """A class of models. Names are those of attributes, from the whole model's, the layer's, its
    attention's or its MLP's on; None: it has none.
    """

    serves: Callable[[Any], bool] = _always  # whether a configuration is computed
    # The whole model.
    body: str = "model"
    embedding: str = "embed_tokens"
    positions: Callable[[Any], torch.Tensor | None] = _no_positions  # learned ones, from the body
    tables: Callable[[Any], list[Rotary]] = _tables_of_module  # from the body
    layers: str = "layers"
    last_norm: str = "norm"
    scales: Callable[[Any], Scales] = _unscaled  # from the configuration
    # A layer.
    is_parallel: Callable[[Any], bool] = _never  # from the configuration
    attention: str = "self_attn"
    mlp: str = "mlp"
    attention_norm: str | None = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_post_norm: str | None = None
    adds_one: bool = False  # to the weights of norms
    # Its attention.
    qkv: str = "q_proj"  # the first of the linears, which is fused with the others
    places: Places = places_in_order
    o: str = "o_proj"
    q_norm: str = "q_norm"  # where there are such norms
    k_norm: str = "k_norm"
    norms_heads_late: bool = False
    rotates: Callable[[Any], bool] = _always  # whether a layer does, from its attention
    in_neighbours: bool = False
    attention_inner_norm: str | None = None
    # Its MLP.
    up: str = "gate_proj"  # the first of the linears
    is_gated: bool = True
    activation: str = "act_fn"
    down: str = "down_proj"
    mlp_inner_norm: str | None = None


def in_groups(heads: int, kv_heads: int, dim: int) -> torch.Tensor:
    """The places of heads that lie in one group for each key head: its query heads, the key head,
    the value head.
    """
    size = heads // kv_heads + 2
    places = torch.arange(kv_heads * size).view(kv_heads, size)
    return torch.cat([places[:, :-2].reshape(-1), places[:, -2], places[:, -1]]) * dim


def _in_quarters(heads: int, kv_heads: int, dim: int) -> torch.Tensor:
    """The places of CodeGen's heads: a quarter of q, of v, of k, then the next quarter of each."""
    q, v, k = torch.arange(3 * heads).view(4, 3, heads // 4).transpose(0, 1).reshape(3, -1)
    return torch.cat([q, k, v]) * dim


def _repeating_tables(body: Any) -> list[Rotary]:
    return [ModuleTable(body.rotary_emb, repeats=True)]


def _stored_tables(body: Any) -> list[Rotary]:
    """All layers of GPT-J and CodeGen have the same table."""
    return [StoredTable(body.h[0].attn.embed_positions)]


def _no_tables(body: Any) -> list[Rotary]:
    return []


def _granite_scales(config: Any) -> Scales:
    return Scales(config.residual_multiplier, 1 / config.logits_scaling)


FAMILIES: dict[type[PreTrainedModel], Family] = {
    transformers.LlamaForCausalLM: Family(),
    transformers.MistralForCausalLM: Family(),
    transformers.Qwen2ForCausalLM: Family(),
    transformers.Qwen3ForCausalLM: Family(),
}


def decoder_of(model: PreTrainedModel) -> Decoder | None:
    """The decoder of a row-wise model on the CPU; None if the decoder does not compute it."""
    family = family_of(model)
    return Decoder(weights_of(model, family)) if family else None


def family_of(model: PreTrainedModel) -> Family | None:
    """The family of exactly this class; None if the decoder does not compute it."""
    family = FAMILIES.get(type(model))
    if family is None or not family.serves(model.config):
        return None
    first = getattr(attrgetter(family.body)(model), family.layers)[0]
    return family if _activation_class(family, first) in _ACTIVATIONS else None


def weights_of(model: Any, family: Family) -> Weights:
    """The weights and constants of a transformers model that was made row-wise
    (`model.rowwise`).
    """
    body = attrgetter(family.body)(model)
    layers = getattr(body, family.layers)
    scales, heads = family.scales(model.config), int(model.config.num_attention_heads)
    return Weights(
        heads=heads,
        embedding=_embedding(family, body),
        tables=family.tables(body),
        layers=[_Reader(family, model.config, heads).layer(*each) for each in enumerate(layers)],
        head=Head(
            norm=_norm(getattr(body, family.last_norm), family.adds_one),
            weight=_weight(model.get_output_embeddings()),
            scale=scales.logits,
            softcap=scales.softcap,
        ),
        residual_scale=scales.residual,
    )


def _embedding(family: Family, body: Any) -> Embedding:
    module = getattr(body, family.embedding)
    weight = module.packed if isinstance(module, PackedEmbedding) else module.weight
    dtype = weight.dtype
    scale = torch.as_tensor(getattr(module, "embed_scale", 1.0)).to(dtype)
    return Embedding(weight, float(scale), family.positions(body))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads layers of a model."""

    family: Family
    config: Any
    heads: int

    def layer(self, index: int, layer: Any) -> Layer:
        return Layer(
            index,
            self._attention(layer, getattr(layer, self.family.attention)),
            self._mlp(layer, attrgetter(self.family.mlp)(layer) if self.family.mlp else layer),
            self.family.is_parallel(self.config),
        )

    def _attention(self, layer: Any, attention: Any) -> Attention:
        family = self.family
        qkv, o = (_weight(getattr(attention, name)) for name in (family.qkv, family.o))
        dim = o.in_features // self.heads
        kv_heads = (qkv.out_features // dim - self.heads) // 2
        return Attention(
            norm=self._norm(layer, family.attention_norm),
            qkv=qkv,
            places=family.places(self.heads, kv_heads, dim),
            head_norm=self._head_norm(attention, kv_heads, dim),
            rope=Rope(0, family.in_neighbours) if family.rotates(attention) else None,
            attends=LayerAttention(float(getattr(attention, "scaling", dim**-0.5))),
            o=o,
            clip=float(getattr(self.config, "clip_qkv", None) or 0.0),
            inner_norm=self._norm(attention, family.attention_inner_norm),
            post_norm=self._norm(layer, family.attention_post_norm),
        )

    def _head_norm(self, attention: Any, kv_heads: int, dim: int) -> HeadNorm | None:
        q, k = (getattr(attention, name, None) for name in (self.family.q_norm, self.family.k_norm))
        if q is None or k is None:
            return None
        sizes = (q, self.heads * dim), (k, kv_heads * dim)
        norms = [_repeated(_norm(each, self.family.adds_one), size) for each, size in sizes]
        weight = torch.cat([each.weight for each in norms])
        biases = [each.bias for each in norms if each.bias is not None]
        bias = torch.cat(biases) if biases else None
        norm = Norm(weight, bias, norms[0].epsilon, norms[0].is_centered)
        is_whole = q.weight.shape == (self.heads * dim,)
        return HeadNorm(norm, is_whole, self.family.norms_heads_late)

    def _mlp(self, layer: Any, mlp: Any) -> Mlp:
        family = self.family
        function = _ACTIVATIONS[_activation_class(family, layer)]
        return Mlp(
            norm=self._norm(layer, family.mlp_norm),
            up=_weight(getattr(mlp, family.up)),
            activation=function,
            is_gated=family.is_gated,
            down=_weight(getattr(mlp, family.down)),
            constants=_constants(_activation(family, layer), function),
            inner_norm=self._norm(mlp, family.mlp_inner_norm),
            post_norm=self._norm(layer, family.mlp_post_norm),
        )

    def _norm(self, parent: Any, name: str | None) -> Norm | None:
        module = None if name is None else getattr(parent, name, None)
        return None if module is None else _norm(module, self.family.adds_one)


def _activation(family: Family, layer: Any) -> Any:
    """The module that is the activation of a layer's MLP."""
    mlp = attrgetter(family.mlp)(layer) if family.mlp else layer
    module = getattr(mlp, family.activation)
    return getattr(module, "inner", module)


def _activation_class(family: Family, layer: Any) -> str:
    return type(_activation(family, layer)).__name__


def _constants(module: Any, function: Activation) -> torch.Tensor | None:
    """The constants of an activation, as its kernel reads them."""
    if function != Activation.XIELU:
        return None
    positive, negative = F.softplus(module.alpha_p), module.beta + F.softplus(module.alpha_n)
    parts = positive, negative, module.beta, module.eps
    return torch.cat([each.detach().float().reshape(1) for each in parts])


def _norm(module: Any, adds_one: bool) -> Norm:
    """The norm that a module is; what it is called says whether it is centered."""
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", _OLMO_EPSILON))
    bias = getattr(module, "bias", None)
    return Norm(
        weight=_norm_weight(module) + (1.0 if adds_one else 0.0),
        bias=None if bias is None else bias.float(),
        epsilon=float(epsilon),
        is_centered="LayerNorm" in type(module).__name__,
    )


def _norm_weight(module: Any) -> torch.Tensor:
    """float32 [width], in memory of its own."""
    weight: torch.Tensor | None = getattr(module, "weight", None)
    if weight is None:
        return torch.ones(module.normalized_shape)
    return weight.detach().float().reshape(-1).clone()


def _repeated(norm: Norm, size: int) -> Norm:
    """A norm with weights for `size` numbers, if it has those of one head only."""
    times = size // len(norm.weight)
    bias = None if norm.bias is None else norm.bias.repeat(times)
    return Norm(norm.weight.repeat(times), bias, norm.epsilon, norm.is_centered)


def _weight(module: PackedLinear | FusedPart) -> Gemm:
    """The packed weight that a module calls: its own, or the one fused of several modules."""
    return module.fused.weight if isinstance(module, FusedPart) else module.packed

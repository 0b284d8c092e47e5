"""Reads the weights of a decoder out of a transformers model that was made row-wise, as its row in
the table of families says (`model.families`).

Weights are not copied: they are those that `model.rowwise` packed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from radixserve.checkpoints.windows import window_of
from radixserve.kernels.attention import LayerAttention
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.model.decoder import Decoder
from radixserve.model.families import FAMILIES, Family, Names, Scales
from radixserve.model.linear import FusedPart, PackedEmbedding, PackedLinear
from radixserve.model.mixtures import MIXTURES
from radixserve.model.read_activation import NotRead, activation_of, constants_of
from radixserve.model.read_experts import experts_of, find, has_experts
from radixserve.model.weights import (
    Attention,
    Embedding,
    Experts,
    Head,
    HeadNorm,
    Layer,
    Mlp,
    Norm,
    Rope,
    Target,
    Weights,
)

log = logging.getLogger(__name__)

ROWS = {**FAMILIES, **MIXTURES}
_OLMO_EPSILON = 1e-5  # stands in the code of its norm only


def decoder_of(model: PreTrainedModel) -> Decoder | None:
    """The decoder of a row-wise model on the CPU; None if there is none for exactly its class, its
    configuration, or its activation.
    """
    family = ROWS.get(type(model))
    if family is None or not family.serves(model.config):
        return None
    try:
        return Decoder(_weights_of(model, family))
    except NotRead as error:
        log.info("there is no decoder for this model: %s", error)
        return None


def _weights_of(model: Any, family: Family) -> Weights:
    body = attrgetter(family.body)(model)
    layers = getattr(body, family.layers)
    scales, heads = family.scales(model.config), int(model.config.num_attention_heads)
    weights = Weights(
        heads=heads,
        embedding=_embedding(family, body, scales),
        tables=family.tables(body),
        layers=[_Reader(family, model.config, heads).layer(*each) for each in enumerate(layers)],
        head=Head(
            norm=_first_norm(body, (family.last_norm,), family.adds_one),
            weight=_weight(model.get_output_embeddings()),
            scale=scales.logits,
            softcap=scales.softcap,
        ),
        residual_scale=scales.residual,
    )
    return replace(weights, targets=_targets(model, weights))


def _targets(model: Any, weights: Weights) -> dict[str, Target]:
    """The modules that multiply by the decoder's weights, by name."""
    numbers = {
        id(gemm): number for number, gemm in enumerate(weights.linears()) if gemm is not None
    }
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear | FusedPart) and id(_weight(module)) in numbers:
            number, gemm = numbers[id(_weight(module))], _weight(module)
            outputs, before = gemm.out_features, 0
            if isinstance(module, FusedPart):
                sizes = module.fused.sizes
                outputs, before = sizes[module.index], sum(sizes[: module.index])
            found[name] = Target(number, before, outputs, gemm.in_features)
    return found


def _embedding(family: Family, body: Any, scales: Scales) -> Embedding:
    module = getattr(body, family.embedding)
    weight = module.packed if isinstance(module, PackedEmbedding) else module.weight
    own = torch.as_tensor(getattr(module, "embed_scale", 1.0)).to(weight.dtype)
    return Embedding(weight, scales.embedding * float(own), family.positions(body))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads layers of a model."""

    family: Family
    config: Any
    heads: int

    def layer(self, index: int, layer: Any) -> Layer:
        return Layer(
            index,
            self._attention(index, layer, getattr(layer, self.family.attention)),
            self._experts(layer) if has_experts(layer, self.family.mixture) else self._mlp(layer),
            self.family.is_parallel(self.config),
        )

    def _attention(self, index: int, layer: Any, attention: Any) -> Attention:
        family = self.family
        qkv, o = (_weight(getattr(attention, name)) for name in (family.qkv, family.o))
        dim = o.in_features // self.heads
        kv_heads = (qkv.out_features // dim - self.heads) // 2
        return Attention(
            norm=self._norm(layer, family.attention_norm),
            qkv=qkv,
            places=family.places(self.heads, kv_heads, dim),
            head_norm=self._head_norm(attention, kv_heads, dim),
            rope=self._rope(attention) if family.rotates(attention) else None,
            attends=self._attends(index, attention, dim),
            o=o,
            clip=float(getattr(self.config, "clip_qkv", None) or 0.0),
            inner_norm=self._norm(attention, family.attention_inner_norm),
            post_norm=self._norm(layer, family.attention_post_norm),
        )

    def _attends(self, index: int, attention: Any, dim: int) -> LayerAttention:
        """The load check sees all of it but which of two long windows a layer has; tests compare
        each family with windows that are short.
        """
        sinks = getattr(attention, "sinks", None)
        return LayerAttention(
            scaling=float(getattr(attention, "scaling", dim**-0.5)),
            window=window_of(self.config, index),
            softcap=getattr(self.config, "attn_logit_softcapping", None),
            sinks=None if sinks is None else sinks.detach().float().clone(),
        )

    def _rope(self, attention: Any) -> Rope:
        return Rope(self.family.table(attention), self.family.in_neighbours)

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
        is_whole = getattr(q, "weight", torch.empty(0)).shape == (self.heads * dim,)
        return HeadNorm(norm, is_whole, self.family.norms_heads_late)

    def _mlp(self, layer: Any) -> Mlp:
        family, mlp = self.family, attrgetter(self.family.mlp)(layer) if self.family.mlp else layer
        norm, post_norm = (
            self._norm(layer, each) for each in (family.mlp_norm, family.mlp_post_norm)
        )
        return replace(self._plain_mlp(mlp), norm=norm, post_norm=post_norm)

    def _plain_mlp(self, mlp: Any) -> Mlp:
        """An MLP without norms around it."""
        family, module = self.family, getattr(mlp, self.family.activation)
        function = activation_of(module)
        return Mlp(
            norm=None,
            up=_weight(getattr(mlp, family.up)),
            activation=function,
            is_gated=family.is_gated,
            down=_weight(getattr(mlp, family.down)),
            constants=constants_of(module, function),
            inner_norm=self._norm(mlp, family.mlp_inner_norm),
        )

    def _experts(self, layer: Any) -> Experts:
        family, mixture = self.family, self.family.mixture
        assert mixture is not None, "only a class with a mixture has experts"
        shared = find(layer, mixture.shared)
        return experts_of(
            layer,
            self.config,
            mixture,
            shared=None if shared is None else self._plain_mlp(shared),
            norm=self._norm(layer, family.mlp_norm),
            post_norm=self._norm(layer, family.mlp_post_norm),
        )

    def _norm(self, parent: Any, names: Names) -> Norm | None:
        return _first_norm(parent, names, self.family.adds_one)


def _first_norm(parent: Any, names: Names, adds_one: bool) -> Norm | None:
    """The first of these norms that `parent` has; None if it has none of them."""
    found = [module for name in names if (module := getattr(parent, name, None)) is not None]
    return None if not found or isinstance(found[0], nn.Identity) else _norm(found[0], adds_one)


def _norm(module: Any, adds_one: bool) -> Norm:
    """The norm that a module is; what it is called says whether it is centered."""
    parts = list(getattr(module, "norms", [module]))  # those of heads, one by one
    first = parts[0]
    epsilon = getattr(first, "variance_epsilon", getattr(first, "eps", _OLMO_EPSILON))
    biases = [each.bias.float() for each in parts if getattr(each, "bias", None) is not None]
    return Norm(
        weight=torch.cat([_norm_weight(each) for each in parts]) + (1.0 if adds_one else 0.0),
        bias=torch.cat(biases) if biases else None,
        epsilon=float(epsilon),
        is_centered="LayerNorm" in type(module).__name__,
    )


def _norm_weight(module: Any) -> torch.Tensor:
    """float32 [width]."""
    weight: torch.Tensor | None = getattr(module, "weight", None)
    if weight is None:
        return torch.ones(module.normalized_shape)
    return weight.detach().float().reshape(-1)


def _repeated(norm: Norm, size: int) -> Norm:
    """A norm with weights for `size` numbers, if it has those of one head only."""
    times = size // len(norm.weight)
    bias = None if norm.bias is None else norm.bias.repeat(times)
    return Norm(norm.weight.repeat(times), bias, norm.epsilon, norm.is_centered)


def _weight(module: PackedLinear | FusedPart) -> Gemm:
    """The packed weight that a module calls: its own, or the one fused of several modules."""
    return module.fused.weight if isinstance(module, FusedPart) else module.packed

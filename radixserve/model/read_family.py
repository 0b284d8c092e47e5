"""Reads the weights of a decoder out of a transformers model that was made row-wise, as its row in
the table of families says (`model.families`).

Weights are not copied: they are those that `model.rowwise` packed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from radixserve.kernels.attention import LayerAttention
from radixserve.kernels.cpu.latent import HeadWeights
from radixserve.model.decoder import Decoder
from radixserve.model.families import FAMILIES, Family, Names, Scales
from radixserve.model.linear import FusedPart, PackedEmbedding, PackedLinear, packed_weight
from radixserve.model.mixtures import MIXTURES
from radixserve.model.read_activation import NotRead, activation_of, constants_of
from radixserve.model.read_experts import experts_of, find, has_experts
from radixserve.model.weights import (
    Attention,
    Embedding,
    Experts,
    Head,
    HeadNorm,
    Latent,
    Layer,
    Mlp,
    Norm,
    Recurrence,
    Rope,
    RowFunction,
    Target,
    Weights,
)
from radixserve.tensors.origins import note

ROWS = {**FAMILIES, **MIXTURES}
_OLMO_EPSILON = 1e-5  # stands in the code of its norm only


def decoder_of(model: PreTrainedModel) -> Decoder:
    """The decoder of a row-wise model on the CPU.

    Raises:
        NotRead: there is none for exactly its class, its configuration, or its activation.
    """
    kind, family = type(model), ROWS.get(type(model))
    if family is None:
        raise NotRead(f"there is no fast forward for this {kind.__name__}")
    if not family.serves(model.config):
        raise NotRead(f"there is no fast forward for this configuration of {kind.__name__}")
    return Decoder(_weights_of(model, family))


def _weights_of(model: Any, family: Family) -> Weights:
    body = attrgetter(family.body)(model)
    modules = attrgetter(family.layers)(body)
    scales, reader = family.scales(model.config), _Reader(family, model.config)
    layers = [reader.layer(index, each) for index, each in enumerate(modules)]
    norm = reader.norm(body, family.last_norm)
    if family.norms_sums(model.config):
        layers, norm = _norming_sums(layers)
    weights = Weights(
        heads=reader.heads,
        embedding=reader.embedding(body, scales),
        tables=family.tables(body),
        layers=layers,
        head=Head(
            norm=norm,
            weight=packed_weight(model.get_output_embeddings()),
            transform=_function(family.transform(model)),
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
        if isinstance(module, PackedLinear | FusedPart) and id(packed_weight(module)) in numbers:
            number, gemm = numbers[id(packed_weight(module))], packed_weight(module)
            outputs, before = gemm.out_features, 0
            if isinstance(module, FusedPart):
                sizes = module.fused.sizes
                outputs, before = sizes[module.index], sum(sizes[: module.index])
            found[name] = Target(number, before, outputs, gemm.in_features)
    return found


def _norming_sums(layers: list[Layer]) -> tuple[list[Layer], Norm | None]:
    """Layers whose norms are behind their sums, as layers that norm the stream before they read it;
    and the norm of the stream behind the last one.
    """
    behind = [None, *(each.mlp.norm for each in layers)]
    changed = [
        replace(
            layer,
            mixer=replace(layer.mixer, norm=before),
            mlp=replace(layer.mlp, norm=layer.mixer.norm),
            norms_stream=True,
        )
        for layer, before in zip(layers, behind[:-1], strict=True)
    ]
    return changed, behind[-1]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads parts of a model."""

    family: Family
    config: Any

    @property
    def heads(self) -> int:
        """Heads of queries."""
        return int(self.config.num_attention_heads)

    def embedding(self, body: Any, scales: Scales) -> Embedding:
        """The embedding of a model's body."""
        family = self.family
        module = find(body, family.embedding)
        weight = module.packed if isinstance(module, PackedEmbedding) else module.weight
        own = torch.as_tensor(getattr(module, "embed_scale", 1.0)).to(weight.dtype)
        return Embedding(
            weight=weight,
            scale=scales.embedding * float(own),
            widen=_function(find(body, family.widen)),
            positions=family.positions(body),
            norm=self.norm(body, family.embedding_norm),
            project=_function(find(body, family.project)),
        )

    def layer(self, index: int, layer: Any) -> Layer:
        """A layer."""
        return Layer(
            index,
            self._mixer(index, layer),
            self._experts(layer) if has_experts(layer, self.family.mixture) else self._mlp(layer),
            self.family.is_parallel(self.config),
        )

    def _mixer(self, index: int, layer: Any) -> Attention | Recurrence:
        family = self.family
        if family.recurrence is not None and (module := find(layer, family.recurrent)) is not None:
            found = family.recurrence(module, self.config)
            return replace(found, norm=self.norm(layer, family.attention_norm))
        return self._attention(index, layer, find(layer, family.attention))

    def _attention(self, index: int, layer: Any, attention: Any) -> Attention:
        family = self.family
        if family.is_latent:
            return self._latent_attention(index, layer, attention)
        qkv, o = (packed_weight(find(attention, name)) for name in (family.qkv, family.o))
        dim = o.in_features // self.heads
        before = (2 if family.has_gates else 1) * self.heads  # the keys
        kv_heads = (qkv.out_features // dim - before) // 2
        places = family.places(self.heads, kv_heads, dim)
        return Attention(
            norm=self.norm(layer, family.attention_norm),
            qkv=qkv,
            places=places,
            head_norm=self._head_norm(attention, kv_heads, dim),
            rope=self._rope(attention) if family.rotates(attention) else None,
            attends=self._attends(index, attention, dim),
            o=o,
            gates=places[: self.heads] + dim if family.has_gates else None,
            clip=float(family.clip(self.config) or 0.0),
            inner_norm=self.norm(attention, family.attention_inner_norm),
            post_norm=self.norm(layer, family.attention_post_norm),
        )

    def _latent_attention(self, index: int, layer: Any, attention: Any) -> Attention:
        narrow = attention.q_a_proj
        sizes = self.config.qk_nope_head_dim, self.config.v_head_dim
        packed = attention.kv_b_proj.packed
        rows = packed.lookup()(torch.arange(packed.out_features))
        note(rows, packed.origin)
        both = rows.view(self.heads, sum(sizes), -1)
        keys, values = torch.split(both, list(sizes), 1)
        return Attention(
            norm=self.norm(layer, self.family.attention_norm),
            qkv=packed_weight(attention.q_proj if narrow is None else attention.q_b_proj),
            places=torch.empty(0, dtype=torch.int64),
            head_norm=None,
            rope=self._rope(attention),
            attends=self._attends(index, attention, sum(sizes)),
            o=packed_weight(attention.o_proj),
            latent=Latent(
                narrow=None if narrow is None else packed_weight(narrow),
                narrow_norm=self.norm(attention, ("q_a_layernorm",)),
                down=packed_weight(attention.kv_a_proj_with_mqa),
                norm=_norm(attention.kv_a_layernorm, False, self.config.kv_lora_rank),
                rotated=self.config.qk_rope_head_dim,
                keys=HeadWeights.of(keys),
                values=HeadWeights.of(values.transpose(1, 2)),
            ),
        )

    def _attends(self, index: int, attention: Any, dim: int) -> LayerAttention:
        """The load check sees all of it but which of two long windows a layer has; tests compare
        each family with windows that are short.
        """
        sinks, scaling = getattr(attention, "sinks", None), self.family.scaling(attention)
        return LayerAttention(
            scaling=dim**-0.5 if scaling is None else float(scaling),
            window=self.family.window(self.config, index),
            softcap=getattr(self.config, "attn_logit_softcapping", None),
            sinks=None if sinks is None else sinks.detach().float().clone(),
            slopes=self.family.slopes(self.config),
        )

    def _rope(self, attention: Any) -> Rope:
        return Rope(self.family.table(attention), self.family.in_neighbours)

    def _head_norm(self, attention: Any, kv_heads: int, dim: int) -> HeadNorm | None:
        q, k = (getattr(attention, name, None) for name in (self.family.q_norm, self.family.k_norm))
        if q is None or k is None:
            return None
        sizes = (q, self.heads * dim), (k, kv_heads * dim)
        norms = [_repeated(_norm(each, self.family.adds_one, dim), size) for each, size in sizes]
        weight = torch.cat([each.weight for each in norms])
        biases = [each.bias for each in norms if each.bias is not None]
        bias = torch.cat(biases) if biases else None
        norm = Norm(weight, bias, norms[0].epsilon, norms[0].is_centered)
        is_whole = getattr(q, "weight", torch.empty(0)).shape == (self.heads * dim,)
        return HeadNorm(norm, is_whole, self.family.norms_heads_late)

    def _mlp(self, layer: Any) -> Mlp:
        family, mlp = self.family, find(layer, self.family.mlp) or layer
        norm, post_norm = (
            self.norm(layer, each) for each in (family.mlp_norm, family.mlp_post_norm)
        )
        return replace(self._plain_mlp(mlp), norm=norm, post_norm=post_norm)

    def _plain_mlp(self, mlp: Any) -> Mlp:
        """An MLP without norms around it."""
        family = self.family
        module = find(mlp, family.activation) if family.activation else F.silu
        function = activation_of(module)
        return Mlp(
            norm=None,
            up=packed_weight(find(mlp, family.up)),
            activation=function,
            is_gated=family.is_gated,
            down=packed_weight(find(mlp, family.down)),
            constants=constants_of(module, function),
            inner_norm=self.norm(mlp, family.mlp_inner_norm),
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
            norm=self.norm(layer, family.mlp_norm),
            post_norm=self.norm(layer, family.mlp_post_norm),
        )

    def norm(self, parent: Any, names: Names) -> Norm | None:
        """The first of these norms that `parent` has; None if it has none of them."""
        found = [module for name in names if (module := find(parent, name)) is not None]
        if not found or isinstance(found[0], nn.Identity):
            return None
        return _norm(found[0], self.family.adds_one, int(self.config.hidden_size))


def _norm(module: Any, adds_one: bool, width: int) -> Norm:
    """The norm that a module is; what it is called says whether it is centered. `width` counts if
    it has no weight.
    """
    parts = list(getattr(module, "norms", [module]))  # those of heads, one by one
    first = parts[0]
    epsilon = getattr(first, "variance_epsilon", getattr(first, "eps", _OLMO_EPSILON))
    biases = [each.bias.float() for each in parts if getattr(each, "bias", None) is not None]
    return Norm(
        weight=torch.cat([_norm_weight(each, width) for each in parts])
        + (1.0 if adds_one else 0.0),
        bias=torch.cat(biases) if biases else None,
        epsilon=float(epsilon),
        is_centered="LayerNorm" in type(module).__name__,
    )


def _norm_weight(module: Any, width: int) -> torch.Tensor:
    """float32 [width]."""
    weight: torch.Tensor | None = getattr(module, "weight", None)
    if weight is None:
        return torch.ones(width)
    return weight.detach().float().reshape(-1)


def _repeated(norm: Norm, size: int) -> Norm:
    """A norm with weights for `size` numbers, if it has those of one head only."""
    times = size // len(norm.weight)
    bias = None if norm.bias is None else norm.bias.repeat(times)
    return Norm(norm.weight.repeat(times), bias, norm.epsilon, norm.is_centered)


def _function(module: RowFunction | None) -> RowFunction | None:
    """What a module computes, by its packed weight if it is nothing but that."""
    return module.packed if isinstance(module, PackedLinear) else module

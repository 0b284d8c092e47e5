"""Reads the decoder of a model that an earlier start has checked straight from its files, without
transformers: importing that, and checking the model anew, would take half of a start.

The weights are packed as `model.rowwise` packs those of the model's own modules, linears of the
same input as one. The result is used only if it is, bit for bit, what was checked (`model.proof`).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from radixserve.checkpoints.weight_files import WeightFiles
from radixserve.kernels.attention import LayerAttention
from radixserve.kernels.cpu.activation import Activation
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.model.decoder import Decoder
from radixserve.model.elementwise import RowwiseRotary
from radixserve.model.fixed_rotary import FixedRotary
from radixserve.model.heap import freed_at_once
from radixserve.model.loaded import LoadedModel, tell
from radixserve.model.proof import Proof, logits_digest, torch_dtype, weights_digest
from radixserve.model.rotary_tables import ModuleTable
from radixserve.model.weights import (
    Attention,
    Embedding,
    Head,
    HeadNorm,
    Layer,
    Linear,
    Mlp,
    Norm,
    Rope,
    Target,
    Weights,
    places_in_order,
)
from radixserve.progress import long_stage

log = logging.getLogger(__name__)


def load_proven(folder: Path, proof: Proof) -> LoadedModel | None:
    """The model in a folder for which there is a proof; None if it is not what was checked.

    Raises:
        ModelRefused: its files are not as they were.
        OSError: a file cannot be read.
    """
    with long_stage("reading the weights of a model that was checked before"), freed_at_once():
        decoder = Decoder(_read(folder, proof))
        loaded = _loaded(proof, decoder)
        if weights_digest(decoder) != proof.weights:
            log.info("the weights are not those that were checked")
            return None
        if logits_digest(loaded) != proof.logits:
            log.warning("the decoder computes other bits than when the model was checked")
            return None
    for warning in proof.warnings:
        log.warning("%s", warning)
    tell(loaded)
    return loaded


def _loaded(proof: Proof, decoder: Decoder) -> LoadedModel:
    return LoadedModel(
        model=torch.nn.Module(),
        device=torch.device("cpu"),
        dtype=torch_dtype(proof.dtype),
        shape=proof.shape,
        vocab_size=proof.vocab_size,
        context_length=proof.context_length,
        eos_token_ids=proof.eos_token_ids,
        attention=proof.attention,
        exact=True,
        decoder=decoder,
    )


def _read(folder: Path, proof: Proof) -> Weights:
    with WeightFiles(folder) as files:
        reader = _Reader(files, torch_dtype(proof.dtype), proof)
        embedding = "model.embed_tokens.weight"
        head = reader.packed(embedding if proof.is_tied else "lm_head.weight")
        rotary = RowwiseRotary(FixedRotary(torch.tensor(proof.frequencies), proof.rotary_factor))
        weights = Weights(
            heads=proof.heads,
            embedding=Embedding(head if proof.is_tied else reader.tensor(embedding)),
            tables=[ModuleTable(rotary)],
            layers=[reader.layer(index) for index in range(proof.layers)],
            head=Head(reader.norm("model.norm.weight"), head),
        )
        return replace(weights, targets=_targets(weights, proof))


def _targets(weights: Weights, proof: Proof) -> dict[str, Target]:
    """The modules that such checkpoints have weights of, by name."""
    linears = weights.linears()
    kv = proof.kv_heads * proof.k_dim
    found = {"lm_head": _target(linears, len(linears) - 1)}
    for layer in weights.layers:
        inner, first = layer.mlp.down.in_features, layer.index * len(Linear)
        q = proof.heads * proof.k_dim
        for name, linear, output, outputs in (
            ("self_attn.q_proj", Linear.QKV, 0, q),
            ("self_attn.k_proj", Linear.QKV, q, kv),
            ("self_attn.v_proj", Linear.QKV, q + kv, kv),
            ("self_attn.o_proj", Linear.OUT, 0, None),
            ("mlp.gate_proj", Linear.UP, 0, inner),
            ("mlp.up_proj", Linear.UP, inner, inner),
            ("mlp.down_proj", Linear.DOWN, 0, None),
        ):
            target = _target(linears, first + linear, output, outputs)
            found[f"model.layers.{layer.index}.{name}"] = target
    return found


def _target(
    linears: list[Gemm | None], number: int, output: int = 0, outputs: int | None = None
) -> Target:
    """Some outputs of a linear, by default all."""
    gemm = linears[number]
    assert gemm is not None, "such models have no experts"
    return Target(number, output, outputs or gemm.out_features, gemm.in_features)


class _Reader:
    """Reads weights by the names that checkpoints of the Llama kind have for them, in `dtype`."""

    def __init__(self, files: WeightFiles, dtype: torch.dtype, proof: Proof) -> None:
        self._files, self._dtype, self._proof = files, dtype, proof

    def layer(self, index: int) -> Layer:
        layer = f"model.layers.{index}"
        return Layer(index, self._attention(layer), self._mlp(layer))

    def _attention(self, layer: str) -> Attention:
        attention, proof = f"{layer}.self_attn", self._proof
        return Attention(
            norm=self.norm(f"{layer}.input_layernorm.weight"),
            qkv=self.packed(*(f"{attention}.{name}_proj.weight" for name in "qkv")),
            places=places_in_order(proof.heads, proof.kv_heads, proof.k_dim),
            head_norm=self._head_norm(attention),
            rope=Rope(0),
            attends=LayerAttention(proof.scaling),
            o=self.packed(f"{attention}.o_proj.weight"),
        )

    def _head_norm(self, attention: str) -> HeadNorm | None:
        names = [f"{attention}.{name}_norm.weight" for name in "qk"]
        if names[0] not in self._files:
            return None
        q, k = (self.tensor(name).float() for name in names)
        weight = torch.cat([q.repeat(self._proof.heads), k.repeat(self._proof.kv_heads)])
        return HeadNorm(Norm(weight, None, self._proof.epsilon))

    def _mlp(self, layer: str) -> Mlp:
        return Mlp(
            norm=self.norm(f"{layer}.post_attention_layernorm.weight"),
            up=self.packed(*(f"{layer}.mlp.{name}_proj.weight" for name in ("gate", "up"))),
            activation=Activation.SILU,
            is_gated=True,
            down=self.packed(f"{layer}.mlp.down_proj.weight"),
        )

    def packed(self, *names: str) -> Gemm:
        """The weights of these names, one below the other, with their biases."""
        bias_names = [name.removesuffix("weight") + "bias" for name in names]
        bias = None
        if bias_names[0] in self._files:
            bias = self.tensor(*bias_names)
        return Gemm(self._files.read(*names).to(self._dtype), bias)

    def norm(self, name: str) -> Norm:
        return Norm(self.tensor(name).float(), None, self._proof.epsilon)

    def tensor(self, *names: str) -> torch.Tensor:
        """The tensors of these names as one, in memory of its own."""
        return self._files.read(*names).to(self._dtype, copy=True)

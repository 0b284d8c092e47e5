"""A leaner forward pass for decoders of the Llama kind: packed linears and compiled row-wise
kernels, with few calls per layer.

It replaces transformers' own forward for classes that are known to compute exactly this; the load
check compares both before it is used. It takes weights and rotary tables from the loaded modules
and keeps none of its own. Knows nothing of requests.

    layer i:  add_norm -> qkv -> rotate (K, V to the pool) | attention -> o -> add_norm -> gate_up
              -> gate -> down
              `project`                                      `mix`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from radixserve.kernels.cpu import native
from radixserve.kernels.cpu.attend import attend_cpu
from radixserve.kernels.cpu.gemm import FEW
from radixserve.kernels.cpu.rows import add_norm, gate, rotate
from radixserve.kernels.cpu.rows_block import LayerBlock
from radixserve.kernels.step import AttentionPlan
from radixserve.model.decoder_program import LeanProgram, Room
from radixserve.model.linear import FusedPart, PackedLinear, PackedWeight
from radixserve.tensors.kv import KVPool

_KNOWN = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
_ENOUGH = 1 << 15  # numbers in a tensor, from which on waking other threads is worth it


@dataclass(frozen=True, slots=True)
class LeanLayer:
    """One decoder layer's weights and constants."""

    input_norm: torch.Tensor
    qkv: PackedWeight
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    scaling: float
    o: PackedWeight
    post_norm: torch.Tensor
    gate_up: PackedWeight
    down: PackedWeight

    @classmethod
    def of(cls, layer: Any) -> LeanLayer:
        """The weights and constants of a transformers layer that was made row-wise."""
        attention, mlp = layer.self_attn, layer.mlp
        norms = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        q_norm, k_norm = (None if norm is None else norm.weight for norm in norms)
        return cls(
            input_norm=layer.input_layernorm.weight,
            qkv=_weight(attention.q_proj),
            q_norm=q_norm,
            k_norm=k_norm,
            scaling=float(attention.scaling),
            o=_weight(attention.o_proj),
            post_norm=layer.post_attention_layernorm.weight,
            gate_up=_weight(mlp.gate_proj),
            down=_weight(mlp.down_proj),
        )


def _weight(module: PackedLinear | FusedPart) -> PackedWeight:
    return module.fused.weight if isinstance(module, FusedPart) else module.packed


class LeanForward:
    """The forward pass of one model. Calls that use the same pool must not overlap."""

    def __init__(self, model: Any) -> None:
        self._embed = model.model.embed_tokens
        self._rotary = model.model.rotary_emb
        self._layers = [LeanLayer.of(layer) for layer in model.model.layers]
        self._norm = model.model.norm.weight
        self._head = model.lm_head
        self._heads = int(model.config.num_attention_heads)
        self._epsilon = float(model.config.rms_norm_eps)
        weights = (
            w for layer in self._layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down)
        )
        self.has_few = all(weight.few is not None for weight in weights)
        self._programs: WeakKeyDictionary[KVPool, tuple[Room, dict[int, LeanProgram]]] = (
            WeakKeyDictionary()
        )

    @classmethod
    def of(cls, model: PreTrainedModel) -> LeanForward | None:
        """The lean forward of a row-wise model on the CPU; None if its classes are not known, or if
        it gates with another activation than silu.
        """
        known = type(model) in _KNOWN and model.config.hidden_act == "silu"
        return cls(model) if known else None

    def __call__(
        self, ids: torch.Tensor, plan: AttentionPlan, wanted: torch.Tensor
    ) -> torch.Tensor:
        """Logits [len(wanted), vocab] of token ids [rows], for the rows that `wanted` lists. Writes
        K/V of all rows to the pool.
        """
        hidden = self._embed(ids)
        cos, sin = self._rotary(hidden[None], torch.from_numpy(plan.positions)[None].long())
        step = _LeanStep(hidden, plan, self._heads, self._epsilon)
        if len(ids) <= FEW and self.has_few:
            step.run(self._program(len(ids), plan.pool), cos[0], sin[0])
        else:
            step.block.point(cos=cos[0].contiguous(), sin=sin[0].contiguous())
            step.run_layers(self._layers)
        if len(wanted) < len(ids):
            step.keep(wanted)  # the last layer's output is needed for these rows only
        delta = step.mix(len(self._layers) - 1, self._layers[-1])
        logits: torch.Tensor = self._head(step.add_norm(delta, self._norm))
        return logits

    def _program(self, rows: int, pool: KVPool) -> LeanProgram:
        """The program for this number of rows over `pool`, prepared when it is first needed."""
        if pool not in self._programs:
            self._programs[pool] = Room.of(FEW, self._layers[0], self._heads, pool), {}
        room, programs = self._programs[pool]
        if rows not in programs:
            programs[rows] = LeanProgram(
                self._layers, room.first(rows), self._heads, self._epsilon, pool
            )
        return programs[rows]


class _LeanStep:
    """What the layers of one step share: the plan, the residual stream, and the tensors that the
    kernels write.
    """

    def __init__(
        self, hidden: torch.Tensor, plan: AttentionPlan, heads: int, epsilon: float
    ) -> None:
        self.hidden = hidden
        self.rows = len(hidden)
        self.plan = plan
        self.block = LayerBlock(plan.pool.shape, heads, epsilon)
        self._normed = torch.empty_like(hidden)
        self._q = torch.empty(self.rows, heads, plan.pool.shape.k_dim)
        self.block.point(hidden=hidden, normed=self._normed, q=self._q, slots=plan.write_slots)

    def run(self, program: LeanProgram, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Run all layers as a program, up to the attention of the last one."""
        program.run(self.plan, self.hidden, cos, sin)
        self.hidden, self._q = program.room.hidden, program.room.q
        self.block.point(hidden=self.hidden)

    def run_layers(self, layers: Sequence[LeanLayer]) -> None:
        """Run the same layers one by one."""
        delta = None
        for index, layer in enumerate(layers):
            self.project(index, layer, delta)
            if index < len(layers) - 1:
                delta = self.mix(index, layer)

    def project(self, index: int, layer: LeanLayer, delta: torch.Tensor | None) -> None:
        """The part of layer `index` before attention: add `delta`, the output of the layer before,
        to the residual stream; write K and V to the pool and the queries to this step.
        """
        qkv = layer.qkv(self.add_norm(delta, layer.input_norm))
        self.block.point(qkv=qkv, q_weight=layer.q_norm, k_weight=layer.k_norm)
        self.block.point(k=self.plan.pool.k[index], v=self.plan.pool.v[index])
        self._run(rotate, qkv)

    def keep(self, wanted: torch.Tensor) -> None:
        """Continue with the rows of `wanted` only; see `AttentionPlan.last_rows`. Done before the
        last layer's attention, when K and V of all rows are in the pool.
        """
        self.plan, self.rows = self.plan.last_rows(wanted.numpy()), len(wanted)
        self.hidden, self._q, self._normed = (
            self.hidden[wanted],
            self._q[wanted],
            self._normed[: self.rows],
        )
        self.block.point(hidden=self.hidden, normed=self._normed)

    def mix(self, index: int, layer: LeanLayer) -> torch.Tensor:
        """The part of layer `index` from attention on. Returns what the layer adds to the residual
        stream, [rows, width].
        """
        out = attend_cpu(self._q, index, self.plan, layer.scaling)
        gate_up = layer.gate_up(self.add_norm(layer.o(out.view(self.rows, -1)), layer.post_norm))
        gated = torch.empty(self.rows, layer.down.in_features)
        self.block.point(gate_up=gate_up, gated=gated)
        self._run(gate, gate_up)
        return layer.down(gated)

    def add_norm(self, delta: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
        """Add `delta` to the residual stream; returns the norm of the sum, which the next call
        overwrites.
        """
        self.block.point(delta=delta, weight=weight)
        self._run(add_norm, self.hidden)
        return self._normed

    def _run(self, kernel: Any, largest: torch.Tensor) -> None:
        """Call a row-wise kernel, on all threads if its largest tensor is worth it."""
        self.block.run(native.address(kernel), self.rows, largest.numel() >= _ENOUGH)

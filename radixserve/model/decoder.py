"""The forward pass of a decoder: embedding, layers, output layer.

`decode_layer` is the one place that says what a layer computes. What differs between families of
models is in the fields of `Layer`. It is written in the few operations of `Operations`, of which
there are two implementations (`model.operations`): `RunNow` calls a kernel for each operation.
`Record` writes the calls down as a program, which then computes every step with that number of
rows.

The load check compares the results with transformers' own modules before the decoder is used.
Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from weakref import WeakKeyDictionary

import torch

from radixserve.kernels.arrays import Longs
from radixserve.kernels.attention import Kernel
from radixserve.kernels.cpu.attention.call import attend_cpu
from radixserve.kernels.cpu.gemm.call import FEW
from radixserve.kernels.step import AttentionPlan
from radixserve.model.operations import (
    Memory,
    Operations,
    Record,
    RecordedStep,
    RunNow,
    Sizes,
)
from radixserve.model.rotary_tables import for_few_rows
from radixserve.model.row_adapters import RowAdapters
from radixserve.model.weights import (
    Attention,
    DeltaRule,
    Experts,
    Latent,
    Layer,
    Linear,
    Mlp,
    Recurrence,
    Table,
    Weights,
)
from radixserve.tensors.kv import KVPool


def decode_layer(
    run: Operations, layer: Layer, delta: torch.Tensor | None, wanted: torch.Tensor | None = None
) -> torch.Tensor:
    """One layer. `delta` is what the layer before adds to the residual stream; returns what this
    one adds, [rows, width].

    With `wanted`, only these rows are computed once K and V of all rows are in the pool: what the
    last layer adds to other rows is never used.
    """
    run.begin(layer)
    mixer, mlp = layer.mixer, layer.mlp
    x = run.add_norm(delta, mixer.norm)
    if isinstance(mixer, Attention):
        mixed, x = _attend(run, mixer, x, wanted)
    else:
        mixed, x = _recur(run, mixer, x, wanted)
    mixed = run.linear(Linear.OUT, mixer.o, mixed)
    mixed = run.norm(mixed, mixer.post_norm)
    if layer.is_parallel:
        x = x if mlp.norm is None else run.norm(run.hidden, mlp.norm)
        run.add_norm(mixed, None)
    else:
        x = run.add_norm(mixed, mlp.norm)
    computed = _mlp(run, mlp, x) if isinstance(mlp, Mlp) else _experts(run, mlp, x)
    return run.norm(computed, mlp.post_norm)


def _attend(
    run: Operations, attention: Attention, x: torch.Tensor, wanted: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What rows x [rows, width] attend, for the rows `wanted`, and x of these rows."""
    latent, gates = attention.latent, None
    if latent is not None:
        q = _latent_queries(run, attention, latent, x)
    else:
        qkv = run.linear(Linear.QKV, attention.qkv, x)
        q = run.rotate(qkv)
        gates = None if attention.gates is None else qkv
    if wanted is not None:
        q, x = run.keep(wanted, q, x)
        gates = None if gates is None else gates[wanted]
    attended = run.attend(q)
    if latent is not None:
        attended = run.multiply_heads(latent.values, attended)
    if gates is not None and attention.gates is not None:
        run.gate(attended, gates, attention.gates)
    return run.norm(attended, attention.inner_norm), x


def _recur(
    run: Operations, recurrence: Recurrence, x: torch.Tensor, wanted: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of a layer with a state, which the rows change one after the other."""
    inputs = run.linear(Linear.QKV, recurrence.inputs, x)
    found = run.convolve(recurrence.convolution, inputs)
    rule = recurrence.rule
    if isinstance(rule, DeltaRule):
        found = run.apply_delta(rule, found, inputs)
    elif rule is not None:
        found = run.advance(rule, found, inputs)
        run.gate(found, inputs, rule.gate_places, is_silu=True)
        found = run.norm(found, rule.norm)
    if wanted is not None:
        found, x = run.keep(wanted, found, x)
    return found, x


def _mlp(run: Operations, mlp: Mlp, x: torch.Tensor) -> torch.Tensor:
    """What an MLP computes from x [rows, width]."""
    inner = run.norm(run.activate(run.linear(Linear.UP, mlp.up, x), mlp), mlp.inner_norm)
    return run.linear(Linear.DOWN, mlp.down, inner)


def _experts(run: Operations, mlp: Experts, x: torch.Tensor) -> torch.Tensor:
    """What a mixture of experts computes from x [rows, width]."""
    routes = run.route(mlp.router, x)
    inner = run.activate(run.grouped_linear(mlp.up, run.gather(x, routes), routes), mlp)
    results = run.grouped_linear(mlp.down, inner, routes)
    shared = _mlp(run, mlp.shared, x) if mlp.shared else None
    gates = run.unrounded_linear(mlp.shared_gate, x) if mlp.shared_gate else None
    return run.combine(results, routes, shared, gates, mlp.scale)


def _latent_queries(
    run: Operations, attention: Attention, latent: Latent, x: torch.Tensor
) -> torch.Tensor:
    """The queries of rows x [rows, width]. Their latents are written to the pool."""
    run.store_latent(latent, run.multiply(latent.down, x))
    if latent.narrow is not None:
        x = run.norm(run.multiply(latent.narrow, x), latent.narrow_norm)
    q = run.linear(Linear.QKV, attention.qkv, x)
    return run.multiply_heads(latent.keys, q, latent.rotated)


_Steps = dict[tuple[int, bool], RecordedStep]
"""A recorded step for each number of rows, without and with adapters."""


class Decoder:
    """The forward pass of one model. Calls that use the same pool must not overlap."""

    def __init__(self, weights: Weights, attend: Kernel = attend_cpu) -> None:
        """`attend` computes the attention of steps that are too long to be recorded."""
        self.weights = weights
        self.layers = weights.layers
        self.attend = attend
        self.most_recorded = FEW  # rows of the largest step that is recorded
        self._embed = weights.embedding.lookup()
        self._tables = [for_few_rows(each) for each in weights.tables]
        self._sizes = Sizes(weights.heads, weights.residual_scale)
        self._records: WeakKeyDictionary[KVPool, tuple[Memory, _Steps]] = WeakKeyDictionary()

    def __call__(
        self,
        ids: torch.Tensor,
        plan: AttentionPlan,
        wanted: torch.Tensor,
        between_layers: Callable[[], None] | None = None,
        adapters: Longs | None = None,
    ) -> torch.Tensor:
        """Logits [len(wanted), vocab] of token ids [rows], for the rows that `wanted` lists. Writes
        K/V of all rows to the pool. `between_layers` is called now and then and may raise.
        `adapters` [rows] are the addresses of the rows' adapters, 0 for none; None: no row has one.
        """
        of_rows = None if adapters is None else RowAdapters.of_addresses(adapters)
        positions = torch.from_numpy(plan.positions).long()
        hidden = self._embedded(ids, positions, plan)
        is_short = len(ids) <= self.most_recorded
        rotaries = self._tables if is_short else self.weights.tables
        tables = [rotary(hidden, positions) for rotary in rotaries]
        if is_short:
            step = self._recorded(plan.pool, hidden, tables, with_adapters=of_rows is not None)
            hidden, delta = step.run(plan, hidden, tables, between_layers, of_rows)
            hidden, delta = hidden[wanted], delta[wanted]
        else:
            run = RunNow(self._sizes, plan, hidden, tables, self.attend, of_rows)
            rows = wanted if len(wanted) < len(ids) else None
            delta = self._run_layers(run, rows, between_layers)
            hidden = run.hidden
        last = RunNow(self._sizes, plan, hidden, tables, self.attend)
        head = self.weights.head
        x, add = last.add_norm(delta, head.norm), None
        if of_rows is not None:
            add = partial(of_rows.of(wanted).add, self.weights.num_linears - 1)
        return head.logits(x, add)

    def _embedded(
        self, ids: torch.Tensor, positions: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor:
        """The stream before the first layer, [rows, width]."""
        hidden, embedding = self._embed(ids, positions), self.weights.embedding
        if embedding.norm is not None:
            run = RunNow(self._sizes, plan, hidden, (), self.attend)
            hidden = run.norm(hidden, embedding.norm)
        return hidden if embedding.project is None else embedding.project(hidden)

    def _run_layers(
        self,
        run: Operations,
        wanted: torch.Tensor | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """Run all layers. Returns what the last one adds to the rows `wanted`, or to all rows if
        that is None.
        """
        delta = None
        for layer in self.layers[:-1]:
            delta = decode_layer(run, layer, delta)
            if between_layers is not None:
                between_layers()
        return decode_layer(run, self.layers[-1], delta, wanted)

    def _recorded(
        self,
        pool: KVPool,
        hidden: torch.Tensor,
        tables: Sequence[Table],
        *,
        with_adapters: bool,
    ) -> RecordedStep:
        """The layers as a program for as many rows as `hidden` has, over `pool`, recorded at first
        use, for inputs such as these.
        """
        if pool not in self._records:
            pairs = [cos.shape[1] for cos, _ in tables]
            memory = Memory(self.most_recorded, hidden.shape[1], pairs, hidden.dtype)
            self._records[pool] = memory, {}
        memory, steps = self._records[pool]
        which = len(hidden), with_adapters
        if which not in steps:
            record = Record(self._sizes, pool, memory, *which)
            steps[which] = record.finish(self._run_layers(record))
        return steps[which]

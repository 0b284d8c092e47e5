"""The forward pass of a decoder: embedding, layers, output layer.

`decode_layer` is the one place that says what a layer computes. It is written in the few operations
of `Operations`, of which there are two implementations (`model.operations`): `RunNow` calls a
kernel for each operation. `Record` writes the calls down as a program, which then computes every
step with that number of rows.

The load check compares the results with transformers' own modules before the decoder is used.
Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch

from radixserve.kernels.attention import Kernel
from radixserve.kernels.cpu.attention.call import attend_cpu
from radixserve.kernels.cpu.gemm.call import FEW
from radixserve.kernels.step import AttentionPlan
from radixserve.model.operations import Memory, Operations, Record, RecordedStep, RunNow
from radixserve.model.weights import Layer, Weights
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
    normed = run.add_norm(delta, layer.input_norm)
    q = run.rotate(run.linear(layer.qkv, normed))
    if wanted is not None:
        q = run.keep(q, wanted)
    attended = run.attend(q)
    normed = run.add_norm(run.linear(layer.o, attended), layer.post_norm)
    return run.linear(layer.down, run.gate(run.linear(layer.gate_up, normed)))


class Decoder:
    """The forward pass of one model. Calls that use the same pool must not overlap."""

    def __init__(self, weights: Weights, attend: Kernel = attend_cpu) -> None:
        """`attend` computes the attention of steps that are too long to be recorded."""
        self.weights = weights
        self.layers = weights.layers
        # Logits are float32 also where activations are bfloat16: rounded, many would be equal.
        self.head: Callable[[torch.Tensor], torch.Tensor] = weights.head.unrounded
        self._embed, self._rotary, self._norm = weights.embed, weights.rotary, weights.norm
        self._sizes = weights.sizes
        self.attend = attend
        self.most_recorded = FEW  # rows of the largest step that is recorded
        self._records: WeakKeyDictionary[KVPool, tuple[Memory, dict[int, RecordedStep]]]
        self._records = WeakKeyDictionary()

    def __call__(
        self, ids: torch.Tensor, plan: AttentionPlan, wanted: torch.Tensor
    ) -> torch.Tensor:
        """Logits [len(wanted), vocab] of token ids [rows], for the rows that `wanted` lists. Writes
        K/V of all rows to the pool.
        """
        hidden = self._embed(ids)
        cos, sin = self._rotary(hidden[None], torch.from_numpy(plan.positions)[None].long())
        tables = cos[0].float().contiguous(), sin[0].float().contiguous()
        if len(ids) <= self.most_recorded:
            hidden, delta = self._recorded(len(ids), plan.pool, hidden.dtype).run(
                plan, hidden, tables
            )
            hidden, delta = hidden[wanted], delta[wanted]
        else:
            run = RunNow(self._sizes, plan, hidden, tables, self.attend)
            delta = self._run_layers(run, wanted if len(wanted) < len(ids) else None)
            hidden = run.hidden
        last = RunNow(self._sizes, plan, hidden, tables, self.attend)
        return self.head(last.add_norm(delta, self._norm))

    def _run_layers(self, run: Operations, wanted: torch.Tensor | None = None) -> torch.Tensor:
        """Run all layers. Returns what the last one adds to the rows `wanted`, or to all rows if
        that is None.
        """
        delta = None
        for layer in self.layers[:-1]:
            delta = decode_layer(run, layer, delta)
        return decode_layer(run, self.layers[-1], delta, wanted)

    def _recorded(self, rows: int, pool: KVPool, dtype: torch.dtype) -> RecordedStep:
        """The layers as a program for this number of rows over `pool`, recorded at first use."""
        if pool not in self._records:
            width, dim = self.layers[0].qkv.in_features, pool.shape.k_dim
            memory = Memory(self.most_recorded, width, dim, dtype)
            self._records[pool] = memory, {}
        memory, steps = self._records[pool]
        if rows not in steps:
            record = Record(self._sizes, pool, memory, rows)
            steps[rows] = record.finish(self._run_layers(record))
        return steps[rows]

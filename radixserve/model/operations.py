"""The operations that a decoder layer is written in, and their two implementations: `RunNow` calls
a kernel for each operation, `Record` writes the calls down as a program.

Starting a kernel from Python and waking the threads costs some microseconds, and a step calls nine
kernels per layer. Where rows are few that is most of a step's time. A program is recorded once per
number of rows and then runs in one parallel region. Both make the same blocks for the same kernels,
so they give the same bits.

    operations of a layer        kernels in a program, with a barrier after each
    add_norm                     add_norm      counter 0
    linear (qkv)                 multiply      counter 1     prefetches K/V of this layer
    rotate                       rotate        counter 2
    attend                       attention
    linear (o)                   multiply      counter 3     prefetches K/V of the next layer
    ...                          ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from radixserve.kernels.arrays import Longs
from radixserve.kernels.attention import Kernel
from radixserve.kernels.cpu import native, rows, threads
from radixserve.kernels.cpu.attention import call as attention
from radixserve.kernels.cpu.gemm.block import COUNTERS, QUEUE_LENGTH
from radixserve.kernels.cpu.gemm.call import Gemm, segments_of
from radixserve.kernels.cpu.program import Program
from radixserve.kernels.cpu.rows import GateBlock, NormBlock, RotateBlock
from radixserve.kernels.step import AttentionPlan
from radixserve.model.weights import Layer, Sizes
from radixserve.tensors.kv import KVPool

_LAUNCHES = 9  # operations of a layer
_ENOUGH = 1 << 15  # numbers in a tensor, from which on waking other threads is worth it

Compiled = Callable[[Any], None]
"""A kernel that `native` compiles."""

_ADD_NORM = {torch.float32: rows.add_norm, torch.bfloat16: rows.add_norm_bfloat16}
_GATE = {torch.float32: rows.gate, torch.bfloat16: rows.gate_bfloat16}


class Operations(ABC):
    """The operations of a decoder layer on the rows of one step, and the residual stream `hidden`
    [rows, width] that they work on.

    All results are contiguous tensors of the stream's dtype. An operation may overwrite what the
    operations of the layer before returned, except the layer's result.
    """

    def __init__(
        self,
        sizes: Sizes,
        pool: KVPool,
        hidden: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
    ) -> None:
        """`tables` are cosines and sines [rows, dim], float32; `slots`, int64 [rows], is where K
        and V go.
        """
        self.hidden = hidden
        self._sizes, self._pool, self._tables, self._slots = sizes, pool, tables, slots

    def begin(self, layer: Layer) -> None:
        """What follows belongs to `layer`."""
        self._layer = layer

    def add_norm(self, delta: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
        """Add `delta` [rows, width] to the residual stream; the RMSNorm of the sum."""
        normed = self._new(self.hidden.shape[1])
        block = NormBlock(
            hidden=self.hidden,
            delta=delta,
            weight=weight,
            normed=normed,
            rows=len(normed),
            epsilon=self._sizes.epsilon,
        )
        self._launch(_ADD_NORM[self.hidden.dtype], block, normed)
        return normed

    def rotate(self, qkv: torch.Tensor) -> torch.Tensor:
        """Norm (where the layer has norms for heads) and rotate queries and keys, [rows, heads *
        dim]. K and V go to their slots in the pool.
        """
        layer, shape, heads = self._layer, self._pool.shape, self._sizes.heads
        q = self._new(heads * shape.k_dim)
        cos, sin = self._tables
        block = RotateBlock(
            qkv=qkv,
            cos=cos,
            sin=sin,
            q_weight=layer.q_norm,
            k_weight=layer.k_norm,
            q=q,
            k=self._pool.k[layer.index],
            v=self._pool.v[layer.index],
            slots=self._slots,
            rows=len(qkv),
            heads=heads,
            kv_heads=shape.kv_heads,
            dim=shape.k_dim,
            row=shape.k_row,
            epsilon=self._sizes.epsilon,
        )
        self._launch(rows.rotate_of(self.hidden.dtype, shape.dtype), block, qkv)
        return q

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(first half) * second half, [rows, inner]."""
        gated = self._new(gate_up.shape[1] // 2)
        block = GateBlock(gate_up=gate_up, gated=gated, rows=len(gated))
        self._launch(_GATE[self.hidden.dtype], block, gate_up)
        return gated

    @abstractmethod
    def linear(self, weight: Gemm, x: torch.Tensor) -> torch.Tensor:
        """[rows, out], from x [rows, in]."""

    @abstractmethod
    def keep(self, q: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Continue with the rows `wanted` of the stream only; returns their queries. See
        `AttentionPlan.last_rows`.
        """

    @abstractmethod
    def attend(self, q: torch.Tensor) -> torch.Tensor:
        """Attention over the slots of the step's plan, [rows, heads * dim]."""

    @abstractmethod
    def _new(self, columns: int) -> torch.Tensor:
        """Memory for a result [rows, columns]."""

    @abstractmethod
    def _launch(self, kernel: Compiled, block: Any, largest: torch.Tensor) -> None:
        """Call a kernel with `block`, whose counter is not yet set."""


class RunNow(Operations):
    """Calls each kernel at once, on all threads if its largest tensor is worth it."""

    def __init__(
        self,
        sizes: Sizes,
        plan: AttentionPlan,
        hidden: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor],
        attend: Kernel,
    ) -> None:
        super().__init__(sizes, plan.pool, hidden, tables, plan.write_slots)
        self._plan, self._attend, self._counter = plan, attend, np.zeros(1, np.int64)

    def linear(self, weight: Gemm, x: torch.Tensor) -> torch.Tensor:
        return weight(x)

    def keep(self, q: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        self._plan, self.hidden = self._plan.last_rows(wanted.numpy()), self.hidden[wanted]
        return q[wanted]

    def attend(self, q: torch.Tensor) -> torch.Tensor:
        by_head = q.view(len(q), self._sizes.heads, -1)
        out = self._attend(by_head, self._layer.index, self._plan, self._layer.scaling)
        return out.view(len(q), -1)

    def _new(self, columns: int) -> torch.Tensor:
        return self.hidden.new_empty(len(self.hidden), columns)

    def _launch(self, kernel: Compiled, block: Any, largest: torch.Tensor) -> None:
        self._counter[0] = 0
        block.counter = self._counter
        threads.run(native.address(kernel), block.address, largest.numel() >= _ENOUGH)


class Memory:
    """The tensors that a recorded step works on, for at most `most` rows: its inputs, and one for
    each result of a layer's operations. All layers, and all programs over one pool, share them.
    """

    def __init__(self, most: int, width: int, dim: int, dtype: torch.dtype) -> None:
        """`dim` is the width of a head, `dtype` that of activations."""
        self._most, self._dtype = most, dtype
        self.hidden = torch.empty(most, width, dtype=dtype)
        self.cos, self.sin = torch.empty(most, dim), torch.empty(most, dim)
        self.slots = torch.empty(most, dtype=torch.int64)
        self._results: list[torch.Tensor] = []

    def result(self, place: int, columns: int) -> torch.Tensor:
        """The tensor [most, columns] of a layer's operation number `place`."""
        if place == len(self._results):
            self._results.append(torch.empty(self._most, columns, dtype=self._dtype))
        found = self._results[place]
        assert found.shape[1] == columns, "all layers have the same sizes"
        return found


class Record(Operations):
    """Writes the operations of all layers down; `finish` makes the step that runs them."""

    def __init__(self, sizes: Sizes, pool: KVPool, memory: Memory, rows: int) -> None:
        """For steps of `rows` rows."""
        tables = memory.cos[:rows], memory.sin[:rows]
        super().__init__(sizes, pool, memory.hidden[:rows], tables, memory.slots[:rows])
        self._memory, self._place, self._attended = memory, 0, False
        self.calls: list[tuple[int, int]] = []
        self._blocks: list[Any] = []  # kept: the program holds bare addresses
        layers = pool.shape.layers
        self._counters = np.zeros((layers, _LAUNCHES, COUNTERS), np.int64)
        self._attention = attention.AttentionStep(pool.shape, sizes.heads, memory.hidden.dtype)
        self._attention_counters = np.zeros((layers, attention.COUNTERS), np.int64)
        # While linears read their weights they prefetch the K/V of the attention that comes next,
        # from a queue for each layer; behind the last attention there is nothing to prefetch.
        self._queues = np.zeros((layers + 1, QUEUE_LENGTH), np.int64)
        for index in range(layers):
            self._queues[index, 3:] = pool.k[index].data_ptr(), pool.v[index].data_ptr()

    def begin(self, layer: Layer) -> None:
        super().begin(layer)
        self._place, self._attended = 0, False

    def linear(self, weight: Gemm, x: torch.Tensor) -> torch.Tensor:
        """Record a linear. It prefetches K and V of this layer's attention if that is still to
        come, else of the next layer's.
        """
        out = self._new(weight.out_features)
        queue = self._queues[self._layer.index + self._attended]
        kernel, block = weight.launch(x, out, self._counter(), queue)
        self._blocks.append(block)
        self.calls.append((kernel, block.address))
        return out

    def keep(self, q: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("a recorded step computes all of its rows")

    def attend(self, q: torch.Tensor) -> torch.Tensor:
        """Record the layer's attention over the slots of the plan that `start` gets."""
        self._attended = True
        out = self._new(self._sizes.heads * self._pool.shape.v_dim)
        index = self._layer.index
        kernel, block = self._attention.launch(
            q=q.view(len(q), self._sizes.heads, -1),
            k=self._pool.k[index],
            v=self._pool.v[index],
            out=out,
            scaling=self._layer.scaling,
            counters=self._attention_counters[index],
        )
        self._blocks.append(block)
        self.calls.append((kernel, block.address))
        return out

    def finish(self, delta: torch.Tensor) -> RecordedStep:
        """The recorded step; `delta` is what the last layer adds to the residual stream."""
        return RecordedStep(self, delta)

    def start(
        self, plan: AttentionPlan, hidden: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """Prepare the blocks for a step: inputs, what attention reads, counters, prefetching."""
        cos, sin = self._tables
        sources = hidden, *tables, plan.write_slots
        for target, source in zip((self.hidden, cos, sin, self._slots), sources, strict=True):
            target.copy_(source)
        self._attention.hold(plan)
        self._counters[:], self._attention_counters[:] = 0, 0
        self._segments = segments_of(plan)
        self._queues[:-1, :3] = 0, len(self._segments), self._segments.ctypes.data

    def _new(self, columns: int) -> torch.Tensor:
        found = self._memory.result(self._place, columns)[: len(self.hidden)]
        self._place += 1
        return found

    def _counter(self) -> Longs:
        """A counter for the operation whose result was made last."""
        counter: Longs = self._counters[self._layer.index, self._place - 1]
        return counter

    def _launch(self, kernel: Compiled, block: Any, largest: torch.Tensor) -> None:
        block.counter = self._counter()
        self._blocks.append(block)
        self.calls.append((native.address(kernel), block.address))


class RecordedStep:
    """All layers of steps of one number of rows over one pool, as one program. It must not run at
    the same time as another one that uses the same `Memory`.
    """

    def __init__(self, record: Record, delta: torch.Tensor) -> None:
        self._record, self._delta = record, delta
        self._program = Program(record.calls)

    def run(
        self, plan: AttentionPlan, hidden: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a step from embeddings [rows, width] on: the residual stream [rows, width] before the
        last layer's result is added, and this result. Both are overwritten by the next step. K and
        V of all rows are in the pool then.
        """
        self._record.start(plan, hidden, tables)
        self._program.run()
        return self._record.hidden, self._delta

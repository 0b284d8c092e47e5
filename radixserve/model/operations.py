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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from radixserve.kernels.arrays import Longs
from radixserve.kernels.attention import Kernel
from radixserve.kernels.cpu import native, rows, threads
from radixserve.kernels.cpu.activation import ActivationBlock, activation_kernel
from radixserve.kernels.cpu.attention import call as attention
from radixserve.kernels.cpu.convolution import convolution_kernel
from radixserve.kernels.cpu.delta_rule import delta_kernel
from radixserve.kernels.cpu.experts import combine_kernel, gather_kernel, route
from radixserve.kernels.cpu.gates import GateBlock, gate_kernel
from radixserve.kernels.cpu.gemm.block import COUNTERS, QUEUE_LENGTH
from radixserve.kernels.cpu.gemm.call import Gemm, segments_of
from radixserve.kernels.cpu.gemm.grouped import GroupedGemm
from radixserve.kernels.cpu.latent import (
    HeadsBlock,
    HeadWeights,
    LatentBlock,
    multiply_heads_kernel,
    store_latent_kernel,
)
from radixserve.kernels.cpu.low_rank import low_rank_kernel
from radixserve.kernels.cpu.program import Program
from radixserve.kernels.cpu.rows import NormBlock, RotateBlock
from radixserve.kernels.cpu.state_space import space_kernel
from radixserve.kernels.step import AttentionPlan, StateSpans
from radixserve.model.latents import heads_block, latent_block
from radixserve.model.recurrent import convolution_block, delta_block, space_block
from radixserve.model.routes import Groups, Routes, combine_block, gather_block, route_block
from radixserve.model.row_adapters import RowAdapters
from radixserve.model.weights import (
    Attention,
    Convolution,
    DeltaRule,
    Experts,
    HeadNorm,
    Latent,
    Layer,
    Linear,
    Mlp,
    Norm,
    Rope,
    Router,
    StateSpace,
    Table,
)
from radixserve.tensors.kv import KVPool

_MOST_LAUNCHES = 40  # kernels of a layer
_PART = 3  # layers of a program between two looks at what has come meanwhile
_ENOUGH = 1 << 15  # numbers in a tensor, from which on waking other threads is worth it

Compiled = Callable[[Any], None]
"""A kernel that `native` compiles."""

_ADD_NORM = {torch.float32: rows.add_norm, torch.bfloat16: rows.add_norm_bfloat16}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the operations need to know of a model, besides its layers and its pool."""

    heads: int  # of queries
    residual_scale: float = 1.0  # of what layers add to the stream


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
        tables: Sequence[Table],
        slots: Mapping[KVPool, torch.Tensor],
        adapters: RowAdapters | None,
    ) -> None:
        """`slots`, int64 [rows] for each part of the pool, is where K and V go. Without `adapters`
        no row has one.
        """
        self.hidden, self._adapters = hidden, adapters
        self._sizes, self._pool, self._tables, self._slots = sizes, pool, tables, slots
        self._states: StateSpans | None = None  # where states are, if layers have some
        self._groups: dict[int, Groups] = {}
        self._norms_stream = False  # of the present layer

    def begin(self, layer: Layer) -> None:
        """What follows belongs to `layer`."""
        self._layer, self._norms_stream = layer, layer.norms_stream

    def add_norm(self, delta: torch.Tensor | None, norm: Norm | None) -> torch.Tensor:
        """Add `delta` [rows, width] to the residual stream; the sum, normed, which is the stream
        from then on if the layer norms it. May overwrite `delta`.
        """
        if delta is None:
            return self.norm(self.hidden, norm)
        in_place = norm is None or self._norms_stream
        normed = self.hidden if in_place else self._new(self.hidden.shape[1])
        self._launch_norm(self.hidden, delta, norm, normed)
        return normed

    def norm(self, x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
        """x [rows, columns], normed; x itself without a norm."""
        if norm is None:
            return x
        normed = self._new(x.shape[1])
        self._launch_norm(x, None, norm, normed)
        return normed

    def _launch_norm(
        self, hidden: torch.Tensor, delta: torch.Tensor | None, norm: Norm | None, out: torch.Tensor
    ) -> None:
        block = NormBlock(
            hidden=hidden,
            delta=delta,
            normed=out,
            rows=len(hidden),
            width=hidden.shape[1],
            delta_scale=self._sizes.residual_scale,
        )
        if norm is not None:
            block.set(weight=norm.weight, bias=norm.bias)
            block.set(is_centered=norm.is_centered, epsilon=norm.epsilon)
        self._launch(_ADD_NORM[hidden.dtype], block, hidden)

    def rotate(self, qkv: torch.Tensor) -> torch.Tensor:
        """Norm (where the layer has norms for heads) and rotate (where it knows positions) queries
        and keys; queries [rows, heads * dim]. K and V go to their slots in the pool.
        """
        layer, shape, heads = self._layer, self._pool.shape, self._sizes.heads
        pool, number = self._pool.of_layer(layer.index)
        q = self._new(heads * shape.k_dim)
        block = RotateBlock(
            qkv=qkv,
            places=layer.attention.places,
            q=q,
            k=pool.k[number],
            v=pool.v[number],
            slots=self._slots[pool],
            rows=len(qkv),
            columns=qkv.shape[1],
            heads=heads,
            kv_heads=shape.kv_heads,
            dim=shape.k_dim,
            row=shape.k_row,
            clip=layer.attention.clip,
        )
        self._set_rope(block, layer.attention.rope)
        _set_head_norm(block, layer.attention.head_norm)
        self._launch(rows.rotate_of(self.hidden.dtype, shape.dtype), block, qkv)
        return q

    def _set_rope(self, block: RotateBlock | LatentBlock | HeadsBlock, rope: Rope | None) -> None:
        if rope is not None:
            cos, sin = self._tables[rope.table]
            block.set(cos=cos, sin=sin, pairs=cos.shape[1], in_neighbours=rope.in_neighbours)

    def store_latent(self, latent: Latent, kv: torch.Tensor) -> None:
        """Write K and V, which are made of `kv` [rows, rank + rotated], to their slots."""
        pool, number = self._pool.of_layer(self._layer.index)
        block = latent_block(latent, kv, pool, number, self._slots[pool])
        self._set_rope(block, self._layer.attention.rope)
        self._launch(store_latent_kernel(kv.dtype, self._pool.shape.dtype), block, kv)

    def multiply_heads(
        self, weights: HeadWeights, x: torch.Tensor, rotated: int = 0
    ) -> torch.Tensor:
        """The numbers of each head of x [rows, heads * (inputs + rotated)] by the head's weight,
        the last ones rotated; [rows, heads * (outputs + rotated)].
        """
        out = self._new(len(weights.weight) * (weights.outputs + rotated))
        block = heads_block(weights, x, out, rotated)
        self._set_rope(block, self._layer.attention.rope if rotated else None)
        self._launch(multiply_heads_kernel(x.dtype), block, None)
        return out

    def convolve(self, convolution: Convolution, x: torch.Tensor) -> torch.Tensor:
        """The convolution of some columns of x [rows, columns]; [rows, channels]."""
        assert self._states is not None, "the plan of the step has states"
        pool, number = self._pool.of_layer(self._layer.index)
        out = self._new(convolution.places.numel() * convolution.weight.shape[2])
        block = convolution_block(convolution, x, out, pool.k[number], self._states)
        self._launch(convolution_kernel(x.dtype), block, x)
        return out

    def apply_delta(self, delta: DeltaRule, qkv: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """The gated delta rule on qkv [rows, channels], with gates [rows, columns]; [rows,
        heads * v_dim].
        """
        assert self._states is not None, "the plan of the step has states"
        pool, number = self._pool.of_layer(self._layer.index)
        out = self._new(len(delta.rates) * delta.v_dim)
        block = delta_block(delta, qkv, gates, out, pool.v[number], self._states)
        self._launch(delta_kernel(qkv.dtype), block, None)
        return out

    def advance(self, space: StateSpace, x: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """The state space on channels of rows [rows, channels], with steps [rows, columns]; [rows,
        heads * p_dim].
        """
        assert self._states is not None, "the plan of the step has states"
        pool, number = self._pool.of_layer(self._layer.index)
        out = self._new(len(space.rates) * space.p_dim)
        block = space_block(space, x, steps, out, pool.v[number], self._states)
        self._launch(space_kernel(x.dtype), block, None)
        return out

    def gate(
        self, x: torch.Tensor, gates: torch.Tensor, places: torch.Tensor, *, is_silu: bool = False
    ) -> None:
        """Multiply x [rows, heads * dim] by the sigmoid of gates, or their SiLU; those of heads are
        at these places [heads] in rows [rows, columns].
        """
        block = GateBlock(x=x, gates=gates, places=places, is_silu=is_silu)
        block.set(rows=len(x), columns=gates.shape[1], dim=x.shape[1] // len(places))
        self._launch(gate_kernel(x.dtype), block, x)

    def activate(self, x: torch.Tensor, mlp: Mlp | Experts) -> torch.Tensor:
        """The activation of x, or of its first half times the second half; [rows, inner]."""
        out = self._new(x.shape[1] // 2 if mlp.is_gated else x.shape[1], len(x))
        block = ActivationBlock(x=x, out=out, constants=mlp.constants, rows=len(x))
        self._launch(activation_kernel(mlp.activation, mlp.is_gated, x.dtype), block, x)
        return out

    def linear(self, which: Linear, weight: Gemm, x: torch.Tensor) -> torch.Tensor:
        """[rows, out], from x [rows, in], with what the rows' adapters add."""
        out = self.multiply(weight, x)
        if self._adapters is not None:
            number = self._layer.index * len(Linear) + which
            block = self._adapters.block(number, x, out)
            self._launch(low_rank_kernel(x.dtype), block, None)
        return out

    def route(self, router: Router, x: torch.Tensor) -> Routes:
        """Choose experts for the rows of x [rows, width]."""
        logits, sizes = self.unrounded_linear(router.logits, x), (router.choices, len(x))
        routes = Routes(
            chosen=self._new(*sizes, torch.int64),
            weights=self._new(*sizes, torch.float32),
            places=self._new(*sizes, torch.int64),
            groups=self._groups_of(logits.shape[1]),
        )
        self._launch(route, route_block(router, logits, routes), logits)
        return routes

    def gather(self, x: torch.Tensor, routes: Routes) -> torch.Tensor:
        """The rows of x [rows, width] in groups, [rows * choices, width]."""
        grouped = self._new(x.shape[1], routes.places.numel())
        self._launch(gather_kernel(x.dtype), gather_block(x, grouped, routes), grouped)
        return grouped

    def combine(
        self,
        results: torch.Tensor,
        routes: Routes,
        shared: torch.Tensor | None,
        gates: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        """`scale` times the weighted sum [rows, width] of the results of a row's experts, which lie
        in groups [rows * choices, width], and of `shared` [rows, width], which the sigmoid of
        `gates` [rows, 1] multiplies if there are some.
        """
        out = self._new(results.shape[1], len(routes.places))
        block = combine_block(results, routes, out)
        block.set(shared=shared, gates=gates, scale=scale)
        self._launch(combine_kernel(out.dtype), block, results)
        return out

    def _groups_of(self, experts: int) -> Groups:
        """The groups of a layer with so many experts. All layers share them."""
        if experts not in self._groups:
            self._groups[experts] = Groups(experts)
        return self._groups[experts]

    @abstractmethod
    def multiply(self, weight: Gemm, x: torch.Tensor) -> torch.Tensor:
        """[rows, out], from x [rows, in], without what adapters add."""

    @abstractmethod
    def unrounded_linear(self, weight: Gemm, x: torch.Tensor) -> torch.Tensor:
        """The same in float32."""

    @abstractmethod
    def grouped_linear(self, weights: GroupedGemm, x: torch.Tensor, routes: Routes) -> torch.Tensor:
        """[rows * choices, out], from grouped rows [rows * choices, in]."""

    @abstractmethod
    def keep(self, wanted: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """Continue with the rows `wanted` of the stream only; returns those of `tensors`. See
        `AttentionPlan.last_rows`.
        """

    @abstractmethod
    def attend(self, q: torch.Tensor) -> torch.Tensor:
        """Attention over the slots of the step's plan, [rows, heads * dim]."""

    @abstractmethod
    def _new(
        self, columns: int, rows: int | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Memory for a result [rows, columns], by default for the rows of the stream in its dtype.
        `rows` is a multiple of these.
        """

    @abstractmethod
    def _launch(self, kernel: Compiled, block: Any, largest: torch.Tensor | None) -> None:
        """Call a kernel with `block`, whose counter is not yet set. All threads call it together
        without its `largest` tensor.
        """


def _set_head_norm(block: RotateBlock, norm: HeadNorm | None) -> None:
    if norm is not None:
        block.set(weight=norm.norm.weight, bias=norm.norm.bias, epsilon=norm.norm.epsilon)
        block.set(is_centered=norm.norm.is_centered)
        block.set(is_whole=norm.is_whole, is_late=norm.is_late)


class RunNow(Operations):
    """Calls each kernel at once, on all threads if its largest tensor is worth it."""

    def __init__(
        self,
        sizes: Sizes,
        plan: AttentionPlan,
        hidden: torch.Tensor,
        tables: Sequence[Table],
        attend: Kernel,
        adapters: RowAdapters | None = None,
    ) -> None:
        slots = {each.pool: each.write_slots for each in plan.parts}
        super().__init__(sizes, plan.pool, hidden, tables, slots, adapters)
        self._states = plan.states
        self._plan, self._attend, self._counter = plan, attend, np.zeros(COUNTERS, np.int64)

    def multiply(self, weight: Gemm, x: torch.Tensor) -> torch.Tensor:
        return weight(x)

    def unrounded_linear(self, weight: Gemm, x: torch.Tensor) -> torch.Tensor:
        return weight.unrounded(x)

    def grouped_linear(self, weights: GroupedGemm, x: torch.Tensor, routes: Routes) -> torch.Tensor:
        out, groups = self._new(weights.out_features, len(x)), routes.groups
        kernel, block = weights.launch(x, out, groups.starts, groups.next_counters())
        threads.run(kernel, block.address, True)
        return out

    def keep(self, wanted: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
        self._plan, self.hidden = self._plan.last_rows(wanted.numpy()), self.hidden[wanted]
        self._adapters = None if self._adapters is None else self._adapters.of(wanted)
        return [each[wanted] for each in tensors]

    def attend(self, q: torch.Tensor) -> torch.Tensor:
        by_head = q.view(len(q), self._sizes.heads, -1)
        plan, number = self._plan.of_layer(self._layer.index)
        out = self._attend(by_head, number, plan, self._layer.attention.attends)
        return out.view(len(q), -1)

    def _new(
        self, columns: int, rows: int | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        rows = len(self.hidden) if rows is None else rows
        return self.hidden.new_empty(rows, columns, dtype=dtype)

    def _launch(self, kernel: Compiled, block: Any, largest: torch.Tensor | None) -> None:
        self._counter[:] = 0
        block.counter = self._counter
        parallel = largest is None or largest.numel() >= _ENOUGH
        threads.run(native.address(kernel), block.address, parallel)


class Memory:
    """The tensors that a recorded step works on, for at most `most` rows: its inputs, and those for
    the results of a layer's operations. All layers, and all programs over one pool, share them.
    """

    def __init__(self, most: int, width: int, pairs: Sequence[int], dtype: torch.dtype) -> None:
        """`pairs` are the columns of the rotary tables, `dtype` is that of activations."""
        self._most, self._dtype = most, dtype
        self.hidden = torch.empty(most, width, dtype=dtype)
        self.tables = [(torch.empty(most, each), torch.empty(most, each)) for each in pairs]
        self.slots = torch.empty(2, most, dtype=torch.int64)  # in each part of the pool
        self.adapters = RowAdapters.empty(most)
        self.states = StateSpans.empty(most)
        self._results: dict[tuple[int, int, torch.dtype], torch.Tensor] = {}

    def result(self, place: int, columns: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor [most, columns] for the result number `place` of a layer, by default in the
        dtype of activations.
        """
        key = place, columns, dtype or self._dtype
        if key not in self._results:
            self._results[key] = torch.empty(self._most, columns, dtype=key[2])
        return self._results[key]


class Record(Operations):
    """Writes the operations of all layers down; `finish` makes the step that runs them."""

    def __init__(
        self, sizes: Sizes, pool: KVPool, memory: Memory, rows: int, with_adapters: bool = False
    ) -> None:
        """For steps of `rows` rows."""
        tables = [(cos[:rows], sin[:rows]) for cos, sin in memory.tables]
        slots = dict(zip(pool.parts, memory.slots[:, :rows], strict=False))
        adapters = memory.adapters if with_adapters else None
        super().__init__(sizes, pool, memory.hidden[:rows], tables, slots, adapters)
        self._states = None if pool.recurrent is None else memory.states
        self._memory, self._attended = memory, False
        self._results, self._launches = 0, 0  # of the layer, so far
        self.calls: list[tuple[int, int]] = []
        self._blocks: list[Any] = []  # kept: the program holds bare addresses
        parts = pool.parts if pool.recurrent is None else [pool, pool.recurrent.pool]
        self.layers = layers = sum(each.shape.layers for each in parts)
        self._counters = np.zeros((layers, _MOST_LAUNCHES, COUNTERS), np.int64)
        self._attention = {
            each: attention.AttentionStep(each.shape, sizes.heads, memory.hidden.dtype)
            for each in pool.parts
        }
        self._attention_counters = np.zeros((layers, attention.COUNTERS), np.int64)
        # While linears read their weights they prefetch the K/V of the attention that comes next,
        # from a queue for each layer; behind the last attention there is nothing to prefetch.
        self._queues = np.zeros((layers + 1, QUEUE_LENGTH), np.int64)
        # those of each window in each part of the pool
        self._layers_of: dict[tuple[KVPool, int | None], list[int]] = {}
        # What is prefetched are places in K. V lies at the same ones if its rows are as long.
        same = pool.shape.v_row == pool.shape.k_row
        for index in range(layers):
            part, number = pool.of_layer(index)
            second = part.v if same else part.k
            self._queues[index, 3:] = part.k[number].data_ptr(), second[number].data_ptr()

    def begin(self, layer: Layer) -> None:
        super().begin(layer)
        self._results, self._launches = 0, 0
        self._attended = not isinstance(layer.mixer, Attention)  # such a layer never will

    def multiply(self, weight: Gemm, x: torch.Tensor) -> torch.Tensor:
        """Record a linear. It prefetches K and V of this layer's attention if that is still to
        come, else of the next layer's.
        """
        return self._linear(weight, x, self._new(weight.out_features))

    def unrounded_linear(self, weight: Gemm, x: torch.Tensor) -> torch.Tensor:
        return self._linear(weight, x, self._new(weight.out_features, dtype=torch.float32))

    def _linear(self, weight: Gemm, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        queue = self._queues[self._layer.index + self._attended]
        kernel, block = weight.launch(x, out, self._next_counter(), queue)
        self._blocks.append(block)
        self.calls.append((kernel, block.address))
        return out

    def grouped_linear(self, weights: GroupedGemm, x: torch.Tensor, routes: Routes) -> torch.Tensor:
        out, groups = self._new(weights.out_features, len(x)), routes.groups
        kernel, block = weights.launch(x, out, groups.starts, groups.next_counters())
        self._blocks.append(block)
        self.calls.append((kernel, block.address))
        return out

    def keep(self, wanted: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
        raise NotImplementedError("a recorded step computes all of its rows")

    def attend(self, q: torch.Tensor) -> torch.Tensor:
        """Record the layer's attention over the slots of the plan that `start` gets."""
        self._attended = True
        index, attends = self._layer.index, self._layer.attention.attends
        pool, number = self._pool.of_layer(index)
        self._layers_of.setdefault((pool, attends.window), []).append(index)
        out = self._new(self._sizes.heads * self._pool.shape.v_dim)
        kernel, block = self._attention[pool].launch(
            q=q.view(len(q), self._sizes.heads, -1),
            k=pool.k[number],
            v=pool.v[number],
            out=out,
            attention=attends,
            counters=self._attention_counters[index],
        )
        self._blocks.append(block)
        self.calls.append((kernel, block.address))
        return out

    def finish(self, delta: torch.Tensor) -> RecordedStep:
        """The recorded step; `delta` is what the last layer adds to the residual stream."""
        return RecordedStep(self, delta)

    def start(
        self,
        plan: AttentionPlan,
        hidden: torch.Tensor,
        tables: Sequence[Table],
        adapters: RowAdapters | None,
    ) -> None:
        """Prepare the blocks for a step: inputs, what attention reads, counters, prefetching."""
        self.hidden.copy_(hidden)
        if adapters is not None and self._adapters is not None:
            self._adapters.copy(adapters)
        for (cos, sin), (new_cos, new_sin) in zip(self._tables, tables, strict=True):
            cos.copy_(new_cos)
            sin.copy_(new_sin)
        if plan.states is not None and self._states is not None:
            self._states.copy(plan.states)
        plans = {each.pool: each for each in plan.parts}
        for pool, each in plans.items():
            self._slots[pool].copy_(each.write_slots)
            self._attention[pool].hold(each)
        self._counters[:], self._attention_counters[:] = 0, 0
        self._segments = {
            (pool, window): segments_of(plans[pool], window) for pool, window in self._layers_of
        }
        for key, segments in self._segments.items():
            self._queues[self._layers_of[key], :3] = 0, len(segments), segments.ctypes.data

    def _new(
        self, columns: int, rows: int | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        times = 1 if rows is None else rows // len(self.hidden)
        found = self._memory.result(self._results, times * columns, dtype)[: len(self.hidden)]
        self._results += 1
        return found.view(-1, columns)

    def _next_counter(self) -> Longs:
        """A counter for the layer's next kernel."""
        counter: Longs = self._counters[self._layer.index, self._launches]
        self._launches += 1
        return counter

    def _launch(self, kernel: Compiled, block: Any, largest: torch.Tensor | None) -> None:
        block.counter = self._next_counter()
        self._blocks.append(block)
        self.calls.append((native.address(kernel), block.address))


class RecordedStep:
    """All layers of steps of one number of rows over one pool, as one program. It must not run at
    the same time as another one that uses the same `Memory`.
    """

    def __init__(self, record: Record, delta: torch.Tensor) -> None:
        self._record, self._delta = record, delta
        self._program = Program(record.calls)
        self._part = _PART * len(record.calls) // record.layers

    def run(
        self,
        plan: AttentionPlan,
        hidden: torch.Tensor,
        tables: Sequence[Table],
        between_layers: Callable[[], None] | None = None,
        adapters: RowAdapters | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a step from embeddings [rows, width] on: the residual stream [rows, width] before the
        last layer's result is added, and this result. Both are overwritten by the next step. K and
        V of all rows are in the pool then. With `between_layers` the program runs in parts, which
        takes some microseconds for each.
        """
        self._record.start(plan, hidden, tables, adapters)
        whole = len(self._program)
        part = whole if between_layers is None else self._part
        for first in range(0, whole, part):
            if between_layers is not None:
                between_layers()
            self._program.run(first, min(first + part, whole))
        return self._record.hidden, self._delta

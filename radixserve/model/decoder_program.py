"""The lean forward's layers as one program for a small number of rows: prepared once for each
number of rows, then only called.

It calls the same kernels as the forward layer by layer, so it gives the same bits. It saves the
time of Python and of waking threads between kernels. It ends with K, V and queries of the last
layer, because from there on a step may continue with fewer rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from radixserve.kernels.arrays import Longs
from radixserve.kernels.cpu import attention, gemm, native
from radixserve.kernels.cpu.attention_block import BLOCK_LENGTH, StepBlock
from radixserve.kernels.cpu.gemm import QUEUE_LENGTH, SEGMENT
from radixserve.kernels.cpu.program import Program
from radixserve.kernels.cpu.rows import add_norm, gate, rotate
from radixserve.kernels.cpu.rows_block import LayerBlock
from radixserve.kernels.step import AttentionPlan
from radixserve.model.linear import PackedWeight
from radixserve.tensors.kv import KVPool

if TYPE_CHECKING:
    from radixserve.model.decoder import LeanLayer

# Kernels of a layer, by number: 0 add_norm, 1 qkv, 2 rotate, 3 attention, 4 o, 5 add_norm,
# 6 gate_up, 7 gate, 8 down.
_LAUNCHES = 9


@dataclass(frozen=True, slots=True)
class Room:
    """The tensors that the layers of a step pass to each other, all [rows, ...] and contiguous."""

    hidden: torch.Tensor  # the residual stream
    cos: torch.Tensor
    sin: torch.Tensor
    slots: torch.Tensor  # int64 [rows]: where K and V go
    normed: torch.Tensor
    qkv: torch.Tensor
    q: torch.Tensor  # [rows, heads, k_dim]
    attended: torch.Tensor  # [rows, heads, v_dim]
    projected: torch.Tensor
    gate_up: torch.Tensor
    gated: torch.Tensor
    delta: torch.Tensor  # what a layer adds to the residual stream

    @classmethod
    def of(cls, rows: int, layer: LeanLayer, heads: int, pool: KVPool) -> Room:
        """Allocates them for `rows` rows of a model in which all layers are as wide as `layer`."""
        width, shape = layer.qkv.in_features, pool.shape
        return cls(
            hidden=torch.empty(rows, width),
            cos=torch.empty(rows, shape.k_dim),
            sin=torch.empty(rows, shape.k_dim),
            slots=torch.empty(rows, dtype=torch.int64),
            normed=torch.empty(rows, width),
            qkv=torch.empty(rows, layer.qkv.out_features),
            q=torch.empty(rows, heads, shape.k_dim),
            attended=torch.empty(rows, heads, shape.v_dim),
            projected=torch.empty(rows, width),
            gate_up=torch.empty(rows, layer.gate_up.out_features),
            gated=torch.empty(rows, layer.down.in_features),
            delta=torch.empty(rows, width),
        )

    def first(self, rows: int) -> Room:
        """The first `rows` rows of the same memory."""
        return Room(*(getattr(self, each.name)[:rows] for each in fields(self)))


class LeanProgram:
    """The program for one number of rows over one pool. It must not run at the same time as another
    program that uses the same `Room`.
    """

    def __init__(
        self, layers: Sequence[LeanLayer], room: Room, heads: int, epsilon: float, pool: KVPool
    ) -> None:
        """Every weight of `layers` must have a kernel for few rows (`PackedWeight.few`)."""
        self.room = room
        self._heads, self._epsilon, self._shape = heads, epsilon, pool.shape
        self._scalings = np.array([layer.scaling for layer in layers], np.float32)
        self._attention = np.zeros((len(layers), BLOCK_LENGTH), np.int64)
        self._counters = np.zeros((len(layers), _LAUNCHES, 4), np.int64)
        # One prefetch queue per layer. While linears read their weights they prefetch the K/V of
        # the attention that comes next: qkv that of its own layer, the others that of the next.
        self._queues = np.zeros((len(layers), QUEUE_LENGTH), np.int64)
        for index in range(len(layers)):
            self._queues[index, 3:] = pool.k[index].data_ptr(), pool.v[index].data_ptr()
        self._blocks: list[Any] = []  # kept: the program holds bare addresses
        self._calls: list[tuple[int, int]] = []
        for index, layer in enumerate(layers):
            self._project(index, layer, pool)
            if index < len(layers) - 1:
                self._mix(index, layer)
        self._program = Program(self._calls)

    def run(
        self, plan: AttentionPlan, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> None:
        """Run a step from embeddings [rows, width] and rotary tables [rows, k_dim] on. The results
        are `room.hidden` and `room.q` before the last layer's attention, and K/V of all rows in the
        pool.
        """
        room = self.room
        for target, source in (
            (room.hidden, hidden),
            (room.cos, cos),
            (room.sin, sin),
            (room.slots, plan.write_slots),
        ):
            target.copy_(source)
        step = StepBlock(plan, room.q)
        tensors = (room.q, plan.pool.k, plan.pool.v, room.attended)
        step.fill(self._attention, tensors, self._scalings, self._counters[:, 3])
        segments = segments_of(plan)
        self._queues[:, :3] = 0, len(segments), segments.ctypes.data
        self._counters[:] = 0
        self._program.run()
        plan.prepared = step

    def _project(self, index: int, layer: LeanLayer, pool: KVPool) -> None:
        room, norms = self.room, {"q_weight": layer.q_norm, "k_weight": layer.k_norm}
        self._norm(index, 0, room.delta if index else None, layer.input_norm)
        self._linear(index, 1, layer.qkv, room.normed, room.qkv, index)
        where = {"slots": room.slots, "k": pool.k[index], "v": pool.v[index]}
        rotary = {"qkv": room.qkv, "q": room.q, "cos": room.cos, "sin": room.sin}
        self._row_wise(index, 2, rotate, **rotary, **norms, **where)

    def _mix(self, index: int, layer: LeanLayer) -> None:
        room, rows = self.room, len(self.room.hidden)
        self._calls.append((native.address(attention.work), self._attention[index].ctypes.data))
        self._linear(index, 4, layer.o, room.attended.view(rows, -1), room.projected, index + 1)
        self._norm(index, 5, room.projected, layer.post_norm)
        self._linear(index, 6, layer.gate_up, room.normed, room.gate_up, index + 1)
        self._row_wise(index, 7, gate, gate_up=room.gate_up, gated=room.gated)
        self._linear(index, 8, layer.down, room.gated, room.delta, index + 1)

    def _norm(
        self, index: int, number: int, delta: torch.Tensor | None, weight: torch.Tensor
    ) -> None:
        arrays = {
            "hidden": self.room.hidden,
            "normed": self.room.normed,
            "delta": delta,
            "weight": weight,
        }
        self._row_wise(index, number, add_norm, **arrays)

    def _row_wise(
        self, index: int, number: int, kernel: Any, **arrays: torch.Tensor | None
    ) -> None:
        """Add a row-wise kernel as number `number` of layer `index`."""
        block = LayerBlock(self._shape, self._heads, self._epsilon, self._counters[index, number])
        block.point(**arrays)
        block.count(len(self.room.hidden))
        self._blocks.append(block)
        self._calls.append((native.address(kernel), block.address))

    def _linear(
        self,
        index: int,
        number: int,
        weight: PackedWeight,
        x: torch.Tensor,
        out: torch.Tensor,
        attended: int,
    ) -> None:
        """Add a linear. It prefetches K and V of layer `attended`, whose attention comes next."""
        assert weight.few is not None, "see LeanForward"
        block: Longs = weight.few.block(
            x, out, self._counters[index, number], self._queues[attended]
        )
        self._blocks.append(block)
        self._calls.append((native.address(gemm.multiply), block.ctypes.data))


def segments_of(plan: AttentionPlan) -> Longs:
    """Byte offsets of the segments of SEGMENT bytes that one layer's attention reads of K,
    ascending, each once. They are those of V, too.
    """
    size = plan.pool.k.stride(1) * plan.pool.k.element_size()
    needed = np.zeros(plan.pool.num_slots * size // SEGMENT + 1, np.bool_)
    begin = plan.table.astype(np.int64) * size
    needed[begin // SEGMENT] = True
    needed[(begin + size - 1) // SEGMENT] = True
    return np.flatnonzero(needed) * SEGMENT

"""What attention needs to know of one step, the same for all layers: which rows attend which slots.

Built once per step from the chunks, with vectors over the batch. Knows nothing of the model.

    chunks            A: positions 2..4 of a sequence      B: position 7 of another
    rows (packed)     0 1 2                                3
    positions         2 3 4                                7
    table             slots of A 0..4, then of B 0..7      (spans.begin: 0, 5)
    write_slots       the slot of each row's own position

Where layers have states, `states` says which rows follow which of them.

Where the K/V of windowed layers lies in a pool of its own, these have a plan of their own, with the
same rows and another table. Positions before all windows have no slot there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from radixserve.kernels.arrays import Bools, Ints, Longs
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool
from radixserve.tensors.transfer import upload


@dataclass(frozen=True, slots=True)
class Spans:
    """A step's chunks as vectors, one entry per sequence. Rows [row, row + count) of the step are
    the positions [start, start + count) of the sequence, whose slots begin at table[begin].
    """

    row: Longs
    count: Longs
    begin: Longs
    start: Longs

    def __len__(self) -> int:
        return len(self.row)

    @property
    def columns(self) -> tuple[Longs, Longs, Longs, Longs]:
        return self.row, self.count, self.begin, self.start

    @property
    def stop(self) -> Longs:
        return self.start + self.count

    def where(self, mask: Bools) -> Spans:
        return Spans(self.row[mask], self.count[mask], self.begin[mask], self.start[mask])


@dataclass(frozen=True, slots=True)
class StateSpans:
    """Which states a step's rows follow, and where states are written: sequence i has the parts
    starts[i] to starts[i + 1] - 1, in order. A part, a row of `parts`, is its first row, the one
    behind its last, the state slot that is read (-1: zeros) and the one that is written.
    """

    count: Longs  # [1], of sequences
    starts: Longs  # [sequences + 1], and more
    parts: Longs  # [parts, 4], and more

    @classmethod
    def empty(cls, most: int) -> StateSpans:
        """Room for at most `most` parts."""
        counts = np.zeros(1, np.int64), np.zeros(most + 1, np.int64)
        return cls(*counts, np.zeros((most, 4), np.int64))

    @classmethod
    def of(cls, chunks: Sequence[Chunk], row: Longs) -> StateSpans:
        """Those of the chunks that begin at these rows of a step."""
        ends, parts = [0], []
        for chunk, first in zip(chunks, row.tolist(), strict=True):
            begin = first
            for stop, source, target in chunk.states:
                end = first + stop - chunk.start
                parts.append((begin, end, source, target))
                begin = end
            assert begin == first + len(chunk.token_ids), "the parts of a chunk are all of it"
            ends.append(len(parts))
        count = np.array([len(chunks)], np.int64)
        return cls(count, np.array(ends, np.int64), np.array(parts, np.int64))

    def copy(self, other: StateSpans) -> None:
        """Become what `other` is, for which there is room."""
        self.count[:] = other.count
        self.starts[: len(other.starts)] = other.starts
        self.parts[: len(other.parts)] = other.parts


@dataclass(slots=True)
class AttentionPlan:
    """One step's attention, for the layers in `pool`. The vectors that the host works with are
    numpy arrays; the tensors that every layer indexes with are on the device.
    """

    pool: KVPool
    spans: Spans
    table: Ints  # [sum of stops]
    positions: Ints  # [rows]
    device_table: torch.Tensor  # int64, `table` on the device
    write_slots: torch.Tensor  # int64 [rows] on the device
    layers_seen: int = 0  # how many layers have attended; the load check reads it
    prepared: object | None = None  # a kernel's own data, made at the first layer for all layers
    windowed: AttentionPlan | None = None  # that of the layers in `pool.windowed`
    states: StateSpans | None = None  # for the layers in `pool.recurrent`
    leaders: Longs | None = None  # which sequences share tiles, once a kernel has found out

    @classmethod
    def of(cls, chunks: Sequence[Chunk], pool: KVPool) -> AttentionPlan:
        """The plan of one step. Cost: O(tokens in the contexts of `chunks`), in vectorised
        numpy.
        """
        count = np.array([len(chunk.token_ids) for chunk in chunks], np.int64)
        start = np.array([chunk.start for chunk in chunks], np.int64)
        stop = start + count
        row, begin = np.cumsum(count) - count, np.cumsum(stop) - stop
        table = np.concatenate([chunk.slots[:end] for chunk, end in zip(chunks, stop, strict=True)])
        positions = np.arange(count.sum()) - np.repeat(row - start, count)
        spans, written = Spans(row, count, begin, start), np.repeat(begin, count) + positions
        plan = cls._over(pool, spans, table, positions.astype(np.int32), written)
        if pool.windowed is not None:
            table = pool.windowed.slots_of(table)
            plan.windowed = cls._over(pool.windowed.pool, spans, table, plan.positions, written)
        if pool.recurrent is not None:
            plan.states = StateSpans.of(chunks, row)
        return plan

    @classmethod
    def _over(
        cls, pool: KVPool, spans: Spans, table: Ints, positions: Ints, written: Longs
    ) -> AttentionPlan:
        """The plan for the layers in `pool`; `written` are the places of the rows in the table."""
        device = pool.k.device
        device_table = upload(table.astype(np.int64), device)
        write_slots = device_table[upload(written, device)]
        return cls(pool, spans, table, positions, device_table, write_slots)

    def of_layer(self, layer: int) -> tuple[AttentionPlan, int]:
        """The plan for a layer of the model, and the layer's number in the pool of that plan."""
        pool, number = self.pool.of_layer(layer)
        return (self if self.windowed is None or pool is self.pool else self.windowed), number

    @property
    def parts(self) -> list[AttentionPlan]:
        """This plan, and that of the windowed layers if they have one."""
        return [self] if self.windowed is None else [self, self.windowed]

    def slots_within(self, window: int | None) -> Ints:
        """The slots of all positions that some row sees, of layers with that window; the others
        attend the whole table.
        """
        if window is None:
            return self.table
        first = np.maximum(0, self.spans.start + 1 - window)
        count = self.spans.stop - first
        index = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        seen: Ints = self.table[index + np.repeat(self.spans.begin + first, count)]
        return seen

    def last_rows(self, wanted: Longs) -> AttentionPlan:
        """The plan of the rows `wanted` only, which are the last one or more of each chunk. Their K
        and V are in the pool already, so it writes none.
        """
        first, end = (
            np.searchsorted(wanted, edge)
            for edge in (self.spans.row, self.spans.row + self.spans.count)
        )
        spans = Spans(first, end - first, self.spans.begin, self.spans.stop - (end - first))
        nothing = self.write_slots[:0]
        return AttentionPlan(
            self.pool,
            spans,
            self.table,
            self.positions[wanted],
            self.device_table,
            nothing,
            windowed=None if self.windowed is None else self.windowed.last_rows(wanted),
        )

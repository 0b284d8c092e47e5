"""What attention needs to know of one step, the same for all layers: which rows attend which slots.

Built once per step from the chunks, with vectors over the batch. Knows nothing of the model.

    chunks            A: positions 2..4 of a sequence      B: position 7 of another
    rows (packed)     0 1 2                                3
    positions         2 3 4                                7
    table             slots of A 0..4, then of B 0..7      (spans.begin: 0, 5)
    write_slots       the slot of each row's own position
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


@dataclass(slots=True)
class AttentionPlan:
    """One step's attention. The vectors that the host works with are numpy arrays; the tensors that
    every layer indexes with are on the device.
    """

    pool: KVPool
    spans: Spans
    table: Ints  # [sum of stops]
    positions: Ints  # [rows]
    device_table: torch.Tensor  # int64, `table` on the device
    write_slots: torch.Tensor  # int64 [rows] on the device
    layers_seen: int = 0  # how many layers have attended; the load check reads it
    prepared: object | None = None  # a kernel's own data, made at the first layer for all layers

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
        device = pool.k.device
        device_table = upload(table.astype(np.int64), device)
        written = upload(np.repeat(begin, count) + positions, device)
        spans = Spans(row, count, begin, start)
        return cls(
            pool, spans, table, positions.astype(np.int32), device_table, device_table[written]
        )

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
            self.pool, spans, self.table, self.positions[wanted], self.device_table, nothing
        )

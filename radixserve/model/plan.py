"""What attention must know of one step, the same for all layers: which rows attend which slots.

Built once per step from the chunks, with vectors over the batch. Knows nothing of the model.

    chunks            A: positions 2..4 of a sequence      B: position 7 of another
    rows (packed)     0 1 2                                3
    positions         2 3 4                                7
    table             slots of A 0..4, then of B 0..7      (row r attends table[begin[r] : begin[r] + positions[r] + 1])
    begin             0 0 0                                5
    write_slots       the slot of each row's own position
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from radixserve.cache.pool import KVPool
from radixserve.step import Chunk

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Span:
    """One chunk: rows [row, row + count) are positions [start, start + count) of the table at `begin`."""

    row: int
    count: int
    begin: int
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.count


@dataclass(slots=True)
class AttentionPlan:
    """One step's attention. Vectors are on the CPU as numpy; what every layer indexes with is on the device."""

    pool: KVPool
    spans: list[Span]
    table: Ints  # [sum of stops]
    begin: Ints  # [rows]
    positions: Ints  # [rows]
    device_table: torch.Tensor  # int64, `table` on the device
    write_slots: torch.Tensor  # int64 [rows] on the device
    layers_seen: int = field(default=0)  # how many layers asked for attention; the load check reads it

    @classmethod
    def of(cls, chunks: Sequence[Chunk], pool: KVPool) -> AttentionPlan:
        counts = np.array([len(chunk.token_ids) for chunk in chunks], np.int32)
        starts = np.array([chunk.start for chunk in chunks], np.int32)
        stops = starts + counts
        begins = np.concatenate([[0], np.cumsum(stops)[:-1]]).astype(np.int32)
        rows = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int32)
        table = np.concatenate([chunk.slots[:stop] for chunk, stop in zip(chunks, stops, strict=True)])
        begin = np.repeat(begins, counts)
        positions = np.arange(counts.sum(), dtype=np.int32) - np.repeat(rows - starts, counts)
        device_table = torch.from_numpy(table.astype(np.int64)).to(pool.k.device)
        written = torch.from_numpy((begin + positions).astype(np.int64)).to(pool.k.device)
        spans = [Span(*map(int, numbers)) for numbers in zip(rows, counts, begins, starts, strict=True)]
        return cls(pool, spans, table, begin, positions, device_table, device_table[written])

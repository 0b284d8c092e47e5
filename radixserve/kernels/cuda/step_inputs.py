"""The input of a decode step at addresses that never change, as a captured graph needs it.

The host writes each step into the same buffers on the device; the plan of a step is made of parts
of them. Knows chunks and slots; knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from radixserve.kernels.cuda.attention_work import (
    MAX_PLACES,
    SPLIT,
    BlockColumns,
    Blocks,
    Cut,
    RowColumns,
    SplitSums,
    lanes_for,
)
from radixserve.kernels.step import AttentionPlan, Spans
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool

# Slots in one step's tables (16 MiB on each side); a step with more runs without a graph.
_MAX_TABLE = 1 << 21
# Columns of the buffers, int64 for each row of the step.
_IDS, _POSITION, _WRITTEN = "token id", "position", "slot to write"
_BLOCKS = tuple(f"block's {name}" for name in BlockColumns._fields)
_ROWS = tuple(f"row's {name}" for name in RowColumns._fields)
_COLUMNS = (_IDS, _POSITION, _WRITTEN, *_BLOCKS, *_ROWS)


class StepInputs:
    """The buffers of one pool's decode steps, and the step that they hold now.

    They are int64: the columns, one behind the other with `max_batch` rows each, then the table of
    slots. The host writes each step into new pinned memory, because the copy of the step before may
    not have run yet.
    """

    def __init__(self, pool: KVPool, max_batch: int, context_length: int) -> None:
        """For steps of up to `max_batch` sequences, which have at most `context_length` tokens."""
        self._pool = pool
        self._max_batch = max_batch
        self._table_size = min(max_batch * context_length, _MAX_TABLE)
        size = len(_COLUMNS) * max_batch + self._table_size
        self._device = torch.zeros(size, dtype=torch.int64, device=pool.k.device)
        self._max_splits = -(-context_length // SPLIT)
        self._sums = SplitSums()
        self._spans = Spans(*[np.zeros(0, np.int64)] * 4)
        self._table = np.zeros(0, np.int32)
        self._positions = np.zeros(0, np.int32)

    def hold(self, chunks: Sequence[Chunk]) -> bool:
        """Whether this is a step of one-token chunks for which there is room."""
        ones = all(len(chunk.token_ids) == 1 for chunk in chunks)
        return (
            ones
            and len(chunks) <= self._max_batch
            and sum(chunk.stop for chunk in chunks) <= self._table_size
        )

    def fill(self, chunks: Sequence[Chunk]) -> None:
        """Write a step of one-token chunks, as many as the graph to be replayed has rows. Cost:
        O(slots in the table).
        """
        start = np.array([chunk.start for chunk in chunks], np.int64)
        ends = np.cumsum(start + 1)
        self._spans = Spans(np.arange(len(chunks)), np.ones_like(start), ends - start - 1, start)
        self._table = np.concatenate([chunk.slots[: chunk.stop] for chunk in chunks])
        self._positions = start.astype(np.int32)
        cut = Cut.of(self._spans, 1, self._pool.shape.kv_heads)
        used = len(_COLUMNS) * self._max_batch + len(self._table)
        host = torch.empty(used, dtype=torch.int64, pin_memory=self._device.is_cuda)
        into = host.numpy()
        ids = np.array([chunk.token_ids[0] for chunk in chunks], np.int64)
        written = self._table[ends - 1]
        columns = zip(_COLUMNS, (ids, start, written, *cut.blocks, *cut.rows), strict=True)
        for name, values in columns:
            into[self._place(name) :][: len(values)] = values
        into[len(_COLUMNS) * self._max_batch :] = self._table
        self._device[:used].copy_(host, non_blocking=True)

    def ids(self, size: int) -> torch.Tensor:
        """The token ids of the first `size` sequences, int64 [size] on the device."""
        return self._column(_IDS, size)

    def positions(self, size: int) -> torch.Tensor:
        """The positions of the first `size` sequences, int64 [size] on the device."""
        return self._column(_POSITION, size)

    def plan(self, size: int) -> AttentionPlan:
        """The attention of a step of `size` sequences. What it holds on the device never moves."""
        lanes = min(self._max_splits, lanes_for(size, self._pool.shape.kv_heads))
        # The same for every batch size, because all graphs share the memory of partial sums.
        num_places = min(MAX_PLACES, self._max_batch * self._max_splits)
        blocks = Blocks(
            BlockColumns(*[self._column(name, size) for name in _BLOCKS]),
            RowColumns(*[self._column(name, size) for name in _ROWS]),
            lanes,
            num_places,
            self._sums,
        )
        return AttentionPlan(
            self._pool,
            self._spans,
            self._table,
            self._positions,
            self._device[len(_COLUMNS) * self._max_batch :],
            self._column(_WRITTEN, size),
            prepared=blocks,
        )

    def _place(self, name: str) -> int:
        """Where a column begins."""
        return _COLUMNS.index(name) * self._max_batch

    def _column(self, name: str, size: int) -> torch.Tensor:
        """The first `size` rows of a column, on the device."""
        return self._device[self._place(name) :][:size]

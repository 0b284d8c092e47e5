"""Pure decode steps as captured CUDA graphs: one per batch size, replayed over input buffers whose
addresses never change.

A step of n sequences is padded to the next power of two. A padding row is a sequence of one token
whose K/V goes to the scratch slot, which the cache does not know; so it changes no other row, and
its numbers are as finite as theirs. This module writes steps to buffers; the capturing itself is
passed in (`cuda`), so that all of this runs in a test without a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

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
from radixserve.model.loaded import LoadedModel
from radixserve.model.token_ids import insert_drawn
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool

log = logging.getLogger(__name__)

Replay = Callable[[], torch.Tensor]
Capture = Callable[[Replay], Replay]

_MAX_BATCH = 256
# Slots in one step's tables (16 MiB on each side); a step with more runs without a graph.
_MAX_TABLE = 1 << 21
_TOLERANCE = 1e-2  # of the largest logit: libraries may choose other algorithms in a graph
# Columns of the buffers, int64 for each row of the step.
_IDS, _POSITION, _WRITTEN = "token id", "position", "slot to write"
_BLOCKS = tuple(f"block's {name}" for name in BlockColumns._fields)
_ROWS = tuple(f"row's {name}" for name in RowColumns._fields)
_COLUMNS = (_IDS, _POSITION, _WRITTEN, *_BLOCKS, *_ROWS)


class StepInputs:
    """The input of a decode step at fixed addresses, copied to the device once per step.

    They are int64: the columns, one behind the other with `max_batch` rows each, then the table of
    slots. The host writes each step into new pinned memory, because the copy of the step before may
    not have run yet.
    """

    def __init__(self, max_batch: int, table_size: int, device: torch.device) -> None:
        self.max_batch = max_batch
        self.table_size = table_size
        size = len(_COLUMNS) * max_batch + table_size
        self._device = torch.zeros(size, dtype=torch.int64, device=device)
        self.spans = Spans(*[np.zeros(0, np.int64)] * 4)
        self.table = np.zeros(0, np.int32)
        self.positions = np.zeros(0, np.int32)

    def hold(self, chunks: Sequence[Chunk]) -> bool:
        """Whether this is a step of one-token chunks for which there is room."""
        ones = all(len(chunk.token_ids) == 1 for chunk in chunks)
        return (
            ones
            and len(chunks) <= self.max_batch
            and sum(chunk.stop for chunk in chunks) <= self.table_size
        )

    def fill(self, chunks: Sequence[Chunk], drawn: torch.Tensor | None, kv_heads: int) -> None:
        """Write a step of one-token chunks, as many as the graph to be replayed has rows. Cost:
        O(slots in the table).
        """
        start = np.array([chunk.start for chunk in chunks], np.int64)
        ends = np.cumsum(start + 1)
        self.spans = Spans(np.arange(len(chunks)), np.ones_like(start), ends - start - 1, start)
        self.table = np.concatenate([chunk.slots[: chunk.stop] for chunk in chunks])
        self.positions = start.astype(np.int32)
        cut = Cut.of(self.spans, 1, kv_heads)
        used = len(_COLUMNS) * self.max_batch + len(self.table)
        host = torch.empty(used, dtype=torch.int64, pin_memory=self._device.is_cuda)
        into = host.numpy()
        ids = np.array([chunk.token_ids[0] for chunk in chunks], np.int64)
        written = self.table[ends - 1]
        columns = zip(_COLUMNS, (ids, start, written, *cut.blocks, *cut.rows), strict=True)
        for name, values in columns:
            into[self._place(name) :][: len(values)] = values
        into[len(_COLUMNS) * self.max_batch :] = self.table
        self._device[:used].copy_(host, non_blocking=True)
        insert_drawn(self.column(_IDS, len(chunks)), chunks, drawn)

    def _place(self, name: str) -> int:
        """Where a column begins."""
        return _COLUMNS.index(name) * self.max_batch

    def column(self, name: str, size: int) -> torch.Tensor:
        """The first `size` rows of a column, on the device."""
        return self._device[self._place(name) :][:size]

    def columns(self, names: Sequence[str], size: int) -> list[torch.Tensor]:
        """`column` for several of them."""
        return [self.column(name, size) for name in names]

    @property
    def device_table(self) -> torch.Tensor:
        return self._device[len(_COLUMNS) * self.max_batch :]


class DecodeGraphs:
    """Decode steps of one model over one pool. A step overwrites the logits of the step before."""

    def __init__(
        self,
        loaded: LoadedModel,
        pool: KVPool,
        *,
        scratch_slot: int,
        max_batch: int,
        capture: Capture,
    ) -> None:
        self._loaded = loaded
        self._pool = pool
        self._capture = capture
        # Even, because the kernel needs columns at multiples of 16 bytes.
        batch = max(2, bucket(min(max_batch, _MAX_BATCH)))
        self._inputs = StepInputs(
            batch, min(batch * loaded.context_length, _MAX_TABLE), loaded.device
        )
        self._max_splits = -(-loaded.context_length // SPLIT)
        self._sums = SplitSums()
        self._padding = Chunk(np.zeros(1, np.int32), 0, np.array([scratch_slot], np.int32))
        self._replays: dict[int, Replay] = {}  # by batch size
        self._failures: dict[int, str] = {}  # by batch size: why it cannot be captured

    def forward(
        self, chunks: Sequence[Chunk], drawn: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """float32 logits [len(chunks), vocab_size]; None if this step has to run without a graph.

        `drawn` is as for the runner: ids that only the device knows are written to the buffers
        there. A batch size that is new is captured first, which takes as long as several steps.
        """
        size = bucket(len(chunks))
        padded = [*chunks, *[self._padding] * (size - len(chunks))]
        if size in self._failures or not self._inputs.hold(padded):
            return None
        self._inputs.fill(padded, drawn, self._pool.shape.kv_heads)
        replay = self._replays.get(size) or self._captured(size)
        return replay()[: len(chunks)] if replay else None

    @torch.inference_mode()
    def check(self) -> str | None:
        """Capture the smallest step and compare it with the same step run directly. Returns None,
        or what is wrong.
        """
        replayed = self.forward([self._padding])
        if replayed is None:
            return self._failures[1]
        direct = self._run(1)
        difference = float((replayed - direct).abs().max())
        allowed = _TOLERANCE * float(direct.abs().max())
        if difference <= allowed:
            return None
        return (
            f"a captured decode step gives other logits (difference {difference:.3g}, allowed "
            f"{allowed:.3g})"
        )

    def _captured(self, size: int) -> Replay | None:
        log.info("capturing the decode step of %d sequences", size)
        try:
            replay = self._replays[size] = self._capture(lambda: self._run(size))
        except RuntimeError as error:
            self._failures[size] = f"decode steps of {size} sequences cannot be captured: {error}"
            log.warning("slower decode: %s", self._failures[size])
            return None
        return replay

    def _run(self, size: int) -> torch.Tensor:
        """One step over the input buffers, which is what a graph records."""
        inputs = self._inputs
        output = self._loaded.model(
            input_ids=inputs.column(_IDS, size)[None],
            position_ids=inputs.column(_POSITION, size)[None],
            use_cache=False,
            plan=self._plan(size),
        )
        logits: torch.Tensor = output.logits[0]
        return logits.float()

    def _plan(self, size: int) -> AttentionPlan:
        inputs = self._inputs
        lanes = min(self._max_splits, lanes_for(size, self._pool.shape.kv_heads))
        # The same for every batch size, because all graphs share the memory of partial sums.
        num_places = min(MAX_PLACES, inputs.max_batch * self._max_splits)
        blocks = Blocks(
            BlockColumns(*inputs.columns(_BLOCKS, size)),
            RowColumns(*inputs.columns(_ROWS, size)),
            lanes,
            num_places,
            self._sums,
        )
        return AttentionPlan(
            self._pool,
            inputs.spans,
            inputs.table,
            inputs.positions,
            inputs.device_table,
            inputs.column(_WRITTEN, size),
            prepared=blocks,
        )


def bucket(count: int) -> int:
    """The batch size that `count` sequences are padded to: the next power of two."""
    return 1 << max(0, count - 1).bit_length()

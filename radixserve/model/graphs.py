"""Pure decode steps of a whole model as captured CUDA graphs: one per batch size, replayed over
input buffers whose addresses never change (`kernels.cuda.step_inputs`).

A step of n sequences is padded to the next power of two. A padding row is a sequence of one token
whose K/V goes to the scratch slot, which the cache does not know; so it changes no other row, and
its numbers are as finite as theirs. The capturing itself is passed in (`kernels.cuda.capture`), so
that all of this runs in a test without a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from radixserve.kernels.cuda.capture import Capture, Replay
from radixserve.kernels.cuda.step_inputs import StepInputs
from radixserve.model.current_plan import computing
from radixserve.model.loaded import LoadedModel
from radixserve.model.token_ids import insert_drawn
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool

log = logging.getLogger(__name__)

_MAX_BATCH = 256
_TOLERANCE = 1e-2  # of the largest logit: libraries may choose other algorithms in a graph


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
        self._capture = capture
        # Even, because the kernel needs columns at multiples of 16 bytes.
        batch = max(2, bucket(min(max_batch, _MAX_BATCH)))
        self._inputs = StepInputs(pool, batch, loaded.context_length)
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
        self._inputs.fill(padded)
        insert_drawn(self._inputs.ids(size), padded, drawn)
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
        with computing(self._inputs.plan(size)):
            output = self._loaded.model(
                input_ids=self._inputs.ids(size)[None],
                position_ids=self._inputs.positions(size)[None],
                use_cache=False,
            )
        logits: torch.Tensor = output.logits[0]
        return logits.float()


def bucket(count: int) -> int:
    """The batch size that `count` sequences are padded to: the next power of two."""
    return 1 << max(0, count - 1).bit_length()

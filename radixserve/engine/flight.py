"""A step between launch and landing: everything is enqueued on the device, and its outcome is not
known here yet.

`launch` never waits for the device, `land` waits once. An exception in `launch` is reported when
the step lands, so that a step fails in one place. Knows works; the scheduler handles the outcome.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from radixserve.engine.faults import Fault, fault_of
from radixserve.engine.giving_way import GivenUp
from radixserve.engine.planning import Work
from radixserve.sampling import PromptLogprobs, Sampled, Samples, reads_output, sample
from radixserve.step import Chunk, Logits, TokenLogprob
from radixserve.tensors.transfer import upload

log = logging.getLogger(__name__)


class StepModel(Protocol):
    """Computes logits and writes K/V: `model.runner.Runner`, or a fake."""

    def forward(
        self,
        chunks: Seq[Chunk],
        drawn: torch.Tensor | None,
        between_layers: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """float32 logits [sum of chunk.num_logits, vocab_size], in chunk order.

        `drawn`, int64 [chunks of the step before], holds the tokens which that step draws, for
        chunks with `drawn_row`. `between_layers` may be called while it computes, and may raise.
        """


class Flight:
    """One step in flight."""

    def __init__(self, works: list[Work]) -> None:
        self.works = works
        self.started = time.perf_counter()
        self._samples: Samples | None = None
        self._known_logprobs: list[_Known] = []
        self._fault: Fault | None = None
        self.is_given_up = False

    @property
    def drawn(self) -> torch.Tensor | None:
        """The token that each work draws, int64 [works] on the device; None if the launch failed.
        Only for steps without drafts.
        """
        return self._samples.ids if self._samples else None

    @property
    def may_stay(self) -> bool:
        """Whether the next step may be launched before this one lands.

        It may not if a draw in it depends on the tokens so far, if it holds guesses, or if it is a
        second try, which has to run alone.
        """
        alone = any(work.sequence.num_retry or len(work.draft) for work in self.works)
        return self._fault is None and not alone and not any(map(reads_output, self.works))

    def launch(
        self,
        model: StepModel,
        before: Flight | None,
        *,
        ahead: bool,
        between_layers: Callable[[], None] | None = None,
    ) -> None:
        """Enqueue forward pass and sampling, behind the step `before` if that is still in flight.
        With `ahead` it never waits for the device. If `between_layers` raises `GivenUp`, it ends at
        once.
        """
        try:
            logits = model.forward(self.works, before.drawn if before else None, between_layers)
            last_rows = np.cumsum([work.num_logits for work in self.works]) - 1
            self._ask_known_logprobs(logits, last_rows.tolist())
            self._constrain()
            rows = [row for work in self.works for row in work.rows]
            if len(rows) < len(logits):
                logits = logits[upload(_drawing(self.works, last_rows), logits.device)]
            self._samples = sample(logits, rows, ahead=ahead)
        except GivenUp:
            self.is_given_up = True
        except Exception as error:
            self._fault = self._fault_of(error)

    def land(self) -> list[list[Sampled | None]] | Fault:
        """For each work the token drawn from the last row of its known tokens, then those behind
        its draft. They are meaningless if the chunk ends before its sequence; None for a row whose
        logits are not finite. Logprobs of known tokens are written to their sequences. A fault if
        the launch or the device raised something.

        Waits for the device.
        """
        if self._fault:
            return self._fault
        try:
            return self._wait()
        except Exception as error:
            return self._fault_of(error)

    def _wait(self) -> list[list[Sampled | None]]:
        assert self._samples is not None, "a step lands after its launch"
        drawn = iter(self._samples.wait())
        for known in self._known_logprobs:
            known.target[known.at :] = known.logprobs.wait()
        return [list(islice(drawn, 1 + len(work.draft))) for work in self.works]

    def _fault_of(self, error: Exception) -> Fault:
        log.error("a step of %d sequences failed", len(self.works), exc_info=error)
        return fault_of(error)

    def _constrain(self) -> None:
        """Compute the masks of rows with a grammar, on the host, while the device computes."""
        for work in self.works:
            if work.sampling.grammar is not None and work.sequence.constraint is not None:
                work.allowed = work.sequence.constraint.allowed(len(work.output_ids))

    def _ask_known_logprobs(self, logits: torch.Tensor, last_rows: list[int]) -> None:
        """Start computing the logprobs of known tokens that are wanted: of the prompt, and of
        tokens that a grammar forced. Position p predicts token p + 1.
        """
        for work, last in zip(self.works, last_rows, strict=True):
            if work.logits is Logits.ALL:
                rows = logits[last + 1 - work.num_logits : last + 1]
                self._known_logprobs += _known(work, rows)


def _drawing(works: list[Work], last_rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The rows of the logits that draw: the last one of each work, and one for each token of its
    draft.
    """
    counts = np.array([1 + len(work.draft) for work in works], np.int64)
    begins = np.cumsum(counts) - counts
    return np.repeat(last_rows + 1 - counts - begins, counts) + np.arange(counts.sum())


@dataclass(slots=True)
class _Known:
    """Logprobs of known tokens on their way to the list of their sequence, from index `at` on."""

    target: list[TokenLogprob]
    at: int
    logprobs: PromptLogprobs


def _known(work: Work, rows: torch.Tensor) -> Iterator[_Known]:
    """The logprobs of the tokens that the chunk's `rows` predict, one row for each position."""
    sequence, sampling = work.sequence, work.sequence.request.sampling
    of_prompt = sampling.prompt_logprobs if sequence.wants_prompt_logits else None
    for target, begin, end, count in (
        (sequence.prompt_logprobs, 1, sequence.num_prompt, of_prompt),
        (sequence.forced_logprobs, sequence.num_reported, sequence.num_tokens, sampling.logprobs),
    ):
        first, stop = max(begin, work.start + 1), min(end, work.stop + 1)
        if count is not None and first < stop:
            some = rows[first - 1 - work.start : stop - 1 - work.start]
            logprobs = PromptLogprobs(some, sequence.ids[first:stop], count)
            yield _Known(target, first - begin, logprobs)

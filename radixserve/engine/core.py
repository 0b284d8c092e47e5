"""One step of the engine: plan, forward, sample, commit.

Ties scheduler, model and sampling together; runs in the engine process, or directly in a test. Knows no sockets.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Seq
from typing import Protocol

import numpy as np
import torch

from radixserve.cache.kvcache import KVCache
from radixserve.engine.scheduler import Limits, Scheduler, Work
from radixserve.request import Request, Sampling
from radixserve.sampling import Row, Sampled, prompt_logprobs, sample
from radixserve.step import Chunk, EngineStats, Logits, TokenEvent

log = logging.getLogger(__name__)

_PROBE = Sampling(max_tokens=1, seed=0, temperature=0.0)  # a chunk that draws no token is still checked to be finite
_NOTHING = np.zeros(0, np.int32)


class StepModel(Protocol):
    """Whatever computes logits and writes K/V: `model.runner.Runner`, or a fake."""

    def forward(self, chunks: Seq[Chunk]) -> torch.Tensor:
        """Float32 logits [sum of chunk.num_logits, vocab_size], in chunk order."""


class EngineCore:
    """The engine without its process."""

    def __init__(self, model: StepModel, cache: KVCache, limits: Limits) -> None:
        self.model = model
        self.cache = cache
        self.scheduler = Scheduler(cache, limits)
        self._steps = 0
        self._recent: list[tuple[float, int, int]] = []  # seconds, tokens, sequences of steps not reported yet

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def submit(self, request: Request, output_ids: list[int]) -> list[TokenEvent]:
        """Queue a request; an event comes back at once only if it can never run."""
        event = self.scheduler.add(request, output_ids)
        return [event] if event else []

    def abort(self, request_id: str) -> list[TokenEvent]:
        """Stop a request; no event if it is not here any more."""
        event = self.scheduler.abort(request_id)
        return [event] if event else []

    def step(self) -> list[TokenEvent]:
        """Compute one step; the events of the requests that got a token or ended.

        A step that raises fails the requests in it and no others.
        """
        started = time.perf_counter()
        works = self.scheduler.plan()
        try:
            logits = self.model.forward([work.chunk for work in works])
            drawn = _draw(works, logits)
        except Exception:
            log.exception("a step of %d sequences failed", len(works))
            return self.scheduler.fail(works, "the forward pass failed")
        events = self.scheduler.commit(works, drawn)
        self._record(time.perf_counter() - started, works)
        return events

    def _record(self, seconds: float, works: list[Work]) -> None:
        self._steps += 1
        self._recent.append((seconds, sum(len(work.chunk.token_ids) for work in works), len(works)))

    def stats(self) -> EngineStats:
        """State now, and the steps since the last call."""
        cache, totals, recent = self.cache.stats(), self.scheduler.totals, self._recent
        self._recent = []
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            slots_free=cache.free,
            slots_leased=cache.private + cache.pinned,
            slots_cached=cache.cached,
            tree_nodes=cache.nodes,
            evicted_tokens_total=cache.evicted_tokens_total,
            preemptions_total=totals.preemptions,
            steps_total=self._steps,
            computed_prompt_tokens_total=totals.computed_prompt_tokens,
            cached_prompt_tokens_total=totals.cached_prompt_tokens,
            generated_tokens_total=totals.generated_tokens,
            step_seconds=[seconds for seconds, _, _ in recent],
            step_tokens=[tokens for _, tokens, _ in recent],
            step_sequences=[sequences for _, _, sequences in recent],
        )


def _draw(works: list[Work], logits: torch.Tensor) -> list[Sampled | None]:
    """Each chunk's next token, drawn from its last row; in vain where the chunk ends before its sequence."""
    last_rows = np.cumsum([work.chunk.num_logits for work in works]) - 1
    _note_prompt_logprobs(works, logits, last_rows)
    whole = all(work.chunk.logits is Logits.LAST for work in works)
    last = logits if whole else logits[torch.from_numpy(last_rows).to(logits.device)]
    return sample(last, [_row(work) for work in works])


def _row(work: Work) -> Row:
    sequence = work.sequence
    if work.chunk.stop < sequence.num_tokens:
        return Row(_PROBE, _NOTHING, _NOTHING)
    return Row(sequence.request.sampling, sequence.prompt_ids, sequence.output_ids)


def _note_prompt_logprobs(works: list[Work], logits: torch.Tensor, last_rows: np.ndarray) -> None:
    """Position p of a chunk predicts prompt token p + 1; the prompt's last position predicts the first output."""
    for work, last in zip(works, last_rows.tolist(), strict=True):
        if work.chunk.logits is Logits.ALL:
            sequence, chunk = work.sequence, work.chunk
            next_ids = sequence.prompt_ids[chunk.start + 1 : chunk.stop + 1]
            first = last + 1 - chunk.num_logits
            rows = logits[first : first + len(next_ids)]
            count = sequence.request.sampling.prompt_logprobs or 0
            sequence.prompt_logprobs[chunk.start :] = prompt_logprobs(rows, next_ids.tolist(), count)

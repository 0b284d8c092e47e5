"""A step being planned: one chunk per sequence, and how many more tokens it may compute.

Knows which tokens of a sequence have no K/V and how far its lease should reach. The scheduler
decides which sequence comes first, and which is preempted when slots are short.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from radixserve.cache.kvcache import Lease
from radixserve.engine.sequence import Sequence
from radixserve.request import Sampling
from radixserve.sampling import Sampled
from radixserve.step import Chunk, Logits

GROWTH = 32  # slots by which a lease grows: one allocation per 32 decoded tokens


# For a chunk that draws no token: its logits are still checked to be finite.
_PROBE = Sampling(max_tokens=1, seed=0, temperature=0.0)
_NOTHING = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class DraftRow:
    """The row behind a guessed token; see `sampling.Row`."""

    sampling: Sampling
    prompt_ids: npt.NDArray[np.int32]
    output_ids: npt.NDArray[np.int32]  # with the guesses up to here
    allowed: None = None


@dataclass(slots=True, kw_only=True)
class Work(Chunk):
    """One sequence's part of a step: the chunk that the model computes, and the row that the
    sampler draws from its last logits (see `sampling.Row`). Behind the tokens that are known the
    chunk may have a draft, each token of which draws in a row of its own (`engine.drafts`).
    """

    sequence: Sequence
    lease: Lease
    sampling: Sampling
    output_ids: npt.NDArray[np.int32]
    allowed: npt.NDArray[np.uint32] | None = None
    draft: npt.NDArray[np.int32] = field(default_factory=lambda: _NOTHING)

    @property
    def prompt_ids(self) -> npt.NDArray[np.int32]:
        return self.sequence.prompt_ids

    @property
    def is_current(self) -> bool:
        """Whether the outcome counts.

        The sequence must hold the lease under which this was planned, so it has not ended and was
        not preempted since; and everything before the chunk must be computed, so no earlier step
        failed.
        """
        return self.sequence.lease is self.lease and self.sequence.num_computed == self.start

    @property
    def num_known(self) -> int:
        """Tokens of the chunk without the draft."""
        return len(self.token_ids) - len(self.draft)

    @property
    def rows(self) -> list[Work | DraftRow]:
        """The rows that draw: its own, and one behind each token of the draft."""
        rows: list[Work | DraftRow] = [self]
        for end in range(1, len(self.draft) + 1):
            output_ids = np.concatenate((self.output_ids, self.draft[:end]))
            rows.append(DraftRow(self.sampling, self.prompt_ids, output_ids))
        return rows

    def guess(self, draft: npt.NDArray[np.int32]) -> None:
        """Compute `draft` behind the known tokens, and draw behind each of its tokens. The lease
        must have slots for it.
        """
        self.draft, self.logits = draft, Logits.ALL
        self.token_ids = np.concatenate((self.token_ids, draft))
        self.slots = self.lease.slots[: self.stop]

    def counting(self, drawn: list[Sampled | None]) -> list[Sampled]:
        """Those draws of the work's rows that count; the first of them must not have failed. A
        guess behind a token that ends the answer counts no more.
        """
        ends, counting = self.sampling.stop_token_ids, []
        for guess, sampled in zip([*self.draft.tolist(), None], drawn, strict=True):
            if sampled is None:
                break
            counting.append(sampled)
            if sampled.token_id != guess or guess in ends:
                break
        return counting

    def take_back(self) -> None:
        """Undo the planning from this chunk on. The chunk is to be computed again, alone, and
        without a draft.
        """
        self.sequence.num_planned = self.sequence.num_computed
        self.sequence.num_retry = self.num_known


@dataclass(slots=True)
class Plan:
    """The works of the next step so far. `room` is the number of tokens that may still be added."""

    room: int
    _works: dict[Sequence, Work] = field(default_factory=dict)

    def add(self, sequence: Sequence) -> None:
        """Plan as many tokens of `sequence` as there is room for. It must hold slots for them."""
        work = self._works[sequence] = _work(sequence, self.room)
        self.room -= len(work.token_ids)
        sequence.num_planned = work.stop

    def has(self, sequence: Sequence) -> bool:
        """Whether a chunk of `sequence` is planned."""
        return sequence in self._works

    def drop(self, sequence: Sequence) -> None:
        """Remove what was planned for `sequence`, which loses its lease."""
        if sequence in self._works:
            self.room += len(self._works.pop(sequence).token_ids)

    def decodes(self) -> list[Work]:
        """The works that compute the last token of their sequence alone, where the host knows it
        already.
        """
        works = self._works.values()
        return [
            work
            for work in works
            if len(work.token_ids) == 1 and work.stop == work.sequence.num_tokens
        ]

    def guess(self, work: Work, draft: npt.NDArray[np.int32]) -> None:
        """Add a draft to a work of the plan, whose lease must have slots for it."""
        work.guess(draft)
        self.room -= len(draft)

    def works(self) -> list[Work]:
        """The finished plan. Sets the `row` of every sequence in it."""
        works = list(self._works.values())
        for row, work in enumerate(works):
            work.sequence.row = row
        return works


def second_try(sequence: Sequence) -> list[Work]:
    """A step of its own for the chunk of `sequence` that was taken back, for which it holds
    slots.
    """
    plan = Plan(sequence.num_retry)
    plan.add(sequence)
    return plan.works()


def last_slot(sequence: Sequence) -> int:
    """Slots that the request needs at its end: every token but the last one drawn gets K/V."""
    return sequence.num_prompt + sequence.request.sampling.max_tokens - 1


def slots_wanted(sequence: Sequence) -> int:
    """How many slots a lease that is taken or grown now should have."""
    return max(sequence.num_expected, min(sequence.num_expected + GROWTH, last_slot(sequence)))


def _work(sequence: Sequence, room: int) -> Work:
    assert sequence.lease is not None, f"{sequence.request.id} holds no lease"
    start, stop = sequence.num_planned, min(sequence.num_expected, sequence.num_planned + room)
    logits = Logits.ALL if sequence.wants_logits(start, stop) else Logits.LAST
    drawn_row = sequence.row if stop > sequence.num_tokens else None
    draws = stop >= sequence.num_tokens
    return Work(
        token_ids=sequence.ids[start:stop],
        start=start,
        slots=sequence.lease.slots[:stop],
        logits=logits,
        drawn_row=drawn_row,
        adapter=sequence.adapter,
        states=sequence.lease.plan_states(start, stop),
        sequence=sequence,
        lease=sequence.lease,
        sampling=sequence.request.sampling if draws else _PROBE,
        output_ids=sequence.ids[sequence.num_prompt : stop] if draws else _NOTHING,
    )

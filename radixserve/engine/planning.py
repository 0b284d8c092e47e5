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
from radixserve.step import Chunk, Logits

GROWTH = 32  # slots by which a lease grows: one allocation per 32 decoded tokens


# For a chunk that draws no token: its logits are still checked to be finite.
_PROBE = Sampling(max_tokens=1, seed=0, temperature=0.0)
_NOTHING = np.zeros(0, np.int32)


@dataclass(slots=True, kw_only=True)
class Work(Chunk):
    """One sequence's part of a step: the chunk that the model computes, and the row that the
    sampler draws from its last logits (see `sampling.Row`).
    """

    sequence: Sequence
    lease: Lease
    sampling: Sampling
    output_ids: npt.NDArray[np.int32]
    allowed: npt.NDArray[np.uint32] | None = None

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

    def take_back(self) -> None:
        """Undo the planning from this chunk on. The chunk is to be computed again, alone."""
        self.sequence.num_planned = self.sequence.num_computed
        self.sequence.num_retry = len(self.token_ids)


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
        sequence=sequence,
        lease=sequence.lease,
        sampling=sequence.request.sampling if draws else _PROBE,
        output_ids=sequence.ids[sequence.num_prompt : stop] if draws else _NOTHING,
    )

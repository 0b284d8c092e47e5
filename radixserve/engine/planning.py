"""A step being planned: one chunk per sequence, and how many more tokens it may compute.

Knows which tokens of a sequence have no K/V and how far its lease should reach. The scheduler
decides which sequence comes first, and which is preempted when slots are short.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from radixserve.cache.kvcache import Lease
from radixserve.engine.sequence import Sequence
from radixserve.step import Chunk, Logits

GROWTH = 32  # slots by which a lease grows: one allocation per 32 decoded tokens


@dataclass(slots=True)
class Work:
    """One sequence's part of a step."""

    sequence: Sequence
    chunk: Chunk
    lease: Lease

    @property
    def is_current(self) -> bool:
        """Whether the outcome counts.

        The sequence must hold the lease under which this was planned, so it has not ended and was
        not preempted since; and everything before the chunk must be computed, so no earlier step
        failed.
        """
        return self.sequence.lease is self.lease and self.sequence.num_computed == self.chunk.start

    def take_back(self) -> None:
        """Undo the planning from this chunk on. The chunk is to be computed again, alone."""
        self.sequence.num_planned = self.sequence.num_computed
        self.sequence.num_retry = len(self.chunk.token_ids)


@dataclass(slots=True)
class Plan:
    """The works of the next step so far. `room` is the number of tokens that may still be added."""

    room: int
    _works: dict[Sequence, Work] = field(default_factory=dict)

    def add(self, sequence: Sequence) -> None:
        """Plan as many tokens of `sequence` as there is room for. It must hold slots for them."""
        work = self._works[sequence] = _work(sequence, self.room)
        self.room -= len(work.chunk.token_ids)
        sequence.num_planned = work.chunk.stop

    def drop(self, sequence: Sequence) -> None:
        """Remove what was planned for `sequence`, which loses its lease."""
        if sequence in self._works:
            self.room += len(self._works.pop(sequence).chunk.token_ids)

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
    chunk = Chunk(sequence.ids[start:stop], start, sequence.lease.slots[:stop], logits, drawn_row)
    return Work(sequence, chunk, sequence.lease)

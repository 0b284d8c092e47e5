"""A step being planned: one chunk per sequence, and for how many tokens there is still room.

Knows what a sequence lacks and how far its lease should reach; which sequence comes first, and who
has to go when slots are short, is the scheduler's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from radixserve.cache.kvcache import Lease
from radixserve.engine.sequence import Sequence
from radixserve.step import Chunk, Logits

GROWTH = 32  # slots a lease grows by; one allocation per 32 decoded tokens


@dataclass(slots=True)
class Work:
    """One sequence's part of a step."""

    sequence: Sequence
    chunk: Chunk
    lease: Lease

    @property
    def is_current(self) -> bool:
        """Whether the outcome counts.

        The sequence holds the lease that this was planned under, so it has not ended and was not
        preempted since; and everything before the chunk is computed, so no step before failed.
        """
        return self.sequence.lease is self.lease and self.sequence.num_computed == self.chunk.start

    def take_back(self) -> None:
        """Undo the planning from this chunk on; the chunk is to be computed again, alone."""
        self.sequence.num_planned = self.sequence.num_computed
        self.sequence.num_retry = len(self.chunk.token_ids)


@dataclass(slots=True)
class Plan:
    """The works of the next step so far; `room` is the number of tokens that may be added."""

    room: int
    _works: dict[Sequence, Work] = field(default_factory=dict)

    def add(self, sequence: Sequence) -> None:
        """Let `sequence`, which has slots for it, compute as much of what it lacks as there is room
        for.
        """
        work = self._works[sequence] = _work(sequence, self.room)
        self.room -= len(work.chunk.token_ids)
        sequence.num_planned = work.chunk.stop

    def drop(self, sequence: Sequence) -> None:
        """Take back what was added for `sequence`, which loses its lease."""
        if sequence in self._works:
            self.room += len(self._works.pop(sequence).chunk.token_ids)

    def works(self) -> list[Work]:
        """The finished plan; every sequence in it learns its row."""
        works = list(self._works.values())
        for row, work in enumerate(works):
            work.sequence.row = row
        return works


def second_try(sequence: Sequence) -> list[Work]:
    """A step without company: the chunk of `sequence` that was taken back, for which it
    has slots.
    """
    plan = Plan(sequence.num_retry)
    plan.add(sequence)
    return plan.works()


def last_slot(sequence: Sequence) -> int:
    """Slots needed at the end: every token but the last gets K/V."""
    return sequence.num_prompt + sequence.request.sampling.max_tokens - 1


def slots_wanted(sequence: Sequence) -> int:
    """How far a lease should reach that is taken or grown now."""
    return max(sequence.num_expected, min(sequence.num_expected + GROWTH, last_slot(sequence)))


def _work(sequence: Sequence, room: int) -> Work:
    assert sequence.lease is not None, f"{sequence.request.id} holds no lease"
    start, stop = sequence.num_planned, min(sequence.num_expected, sequence.num_planned + room)
    logits = Logits.LAST if sequence.reads_cache or start >= sequence.num_prompt else Logits.ALL
    drawn_row = sequence.row if stop > sequence.num_tokens else None
    chunk = Chunk(sequence.ids[start:stop], start, sequence.lease.slots[:stop], logits, drawn_row)
    return Work(sequence, chunk, sequence.lease)

"""The running sequences, each with a lease on its slots: lets one begin, suspends it, ends it.

A suspended sequence waits again. What it computed stays in the cache, so beginning again is a
prefix hit. Who begins is decided by `admission`, and who makes room by it and by the scheduler.
Knows no steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from radixserve.cache.kvcache import KVCache, Lease
from radixserve.engine.planning import slots_wanted
from radixserve.engine.queue import FairQueue
from radixserve.engine.seats import Seats
from radixserve.engine.sequence import Sequence
from radixserve.engine.slot_shares import SlotShares
from radixserve.engine.totals import Totals


class Running:
    """The oldest first."""

    def __init__(
        self, cache: KVCache, waiting: FairQueue, totals: Totals, max_running: int
    ) -> None:
        """`waiting` is where sequences come from and go back to; at most `max_running` sequences
        should run at a time.
        """
        self.cache = cache
        self.max_running = max_running
        self._waiting = waiting
        self._totals = totals
        self._sequences: list[Sequence] = []
        self._pressed = False

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __reversed__(self) -> Iterator[Sequence]:
        return reversed(self._sequences)

    @property
    def is_short_of_slots(self) -> bool:
        """Whether one was preempted because slots are short, and none has ended since."""
        return self._pressed and bool(self._sequences)

    def seats(self) -> Seats | None:
        """Who holds the seats; None while some are free."""
        full = len(self._sequences) >= self.max_running
        return Seats(self._sequences, self.max_running) if full else None

    def slot_shares(self) -> SlotShares:
        """Who holds the slots."""
        slots = self.cache.slots
        return SlotShares(self._sequences, slots.budget, slots.in_slots)

    def begin(self, sequence: Sequence) -> bool:
        """Take a lease on the longest cached prefix of a waiting sequence and slots for the rest.
        False if there is no room now.
        """
        prefix, begun = sequence.prefix(sequence.num_usable), time.monotonic()
        lease = self.cache.lease(prefix, slots_wanted(sequence), read=sequence.reads_cache)
        if lease is None:
            return False
        if sequence.num_cached is None:
            sequence.lookup_seconds = time.monotonic() - begun
        self._waiting.admit(sequence)
        self._sequences.append(sequence)
        sequence.lease = lease
        sequence.num_computed = sequence.num_planned = lease.num_cached
        sequence.num_reached = max(sequence.num_reached, lease.num_cached)
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Let `sequence` make room, because slots are short."""
        self.suspend(sequence)
        self.note_shortage()

    def suspend(self, sequence: Sequence) -> None:
        """Let `sequence` wait again; what was computed stays in the cache."""
        sequence.num_reached = max(sequence.num_reached, sequence.num_computed)
        publish(sequence)
        self._release(sequence)
        self._waiting.put_back(sequence)
        sequence.num_asked = 0
        sequence.preempted.append(time.monotonic() - sequence.request.arrived)
        self._totals.preemptions += 1

    def note_shortage(self) -> None:
        """Slots are short from now on, until a sequence ends."""
        self._pressed = True

    def end(self, sequence: Sequence) -> None:
        """`sequence` runs no more."""
        self._release(sequence)
        self._pressed = False

    def _release(self, sequence: Sequence) -> None:
        lease_of(sequence).release()
        sequence.lease = None
        sequence.num_computed = sequence.num_planned = 0
        self._sequences.remove(sequence)


def publish(sequence: Sequence) -> None:
    """Make the computed K/V of `sequence` visible to others, unless its request forbids it."""
    if sequence.request.keeps_cache:
        lease_of(sequence).publish(sequence.prefix(sequence.num_computed))


def lease_of(sequence: Sequence) -> Lease:
    """The lease of a running sequence."""
    assert sequence.lease is not None, f"{sequence.request.id} holds no lease"
    return sequence.lease

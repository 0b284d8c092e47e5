"""Which waiting sequences begin with the step that is being planned.

They are asked in the order of the `FairQueue`. One begins if the step has room for it beside the
prefills that run, or if it is shorter than one of these; if it has a seat and slots, or another
tenant gives it some of its surplus (`seats`, `slot_shares`); and if nothing is worth waiting for:
its grammar, K/V that is being fetched, or a prefix that a running sequence computes
(`single_flight`). Those behind one that must wait may pass it. Changes the queue and the running
sequences through `Running` only.
"""

from __future__ import annotations

from collections.abc import Callable

from radixserve.engine.pins import Pins
from radixserve.engine.planning import Plan, slots_wanted
from radixserve.engine.queue import FairQueue
from radixserve.engine.running import Running
from radixserve.engine.sequence import Sequence
from radixserve.engine.single_flight import awaits_prefix
from radixserve.engine.slot_shares import SlotShares
from radixserve.engine.tiers import Tiers


class Admission:
    """One round of it, and what this round still has to give."""

    def __init__(
        self, running: Running, waiting: FairQueue, tiers: Tiers, pins: Pins, plan: Plan
    ) -> None:
        """`plan` is that of the step, which contains the decodes already."""
        self._running, self._waiting = running, waiting
        self._tiers, self._pins, self._plan = tiers, pins, plan
        pending = [each.num_pending for each in running if each.is_prefilling]
        self._room = plan.room - sum(pending)  # tokens of the step, beside these prefills
        self._longest = max(pending, default=0)
        self._seats = running.seats()  # None while some are free
        self._is_short = running.is_short_of_slots
        self._shares: SlotShares | None = None  # None while slots are not short

    def admit(self, first: Callable[[Sequence], None]) -> None:
        """Begin with all sequences that may; `first` is called with those that never ran before."""
        if not self._may_any():
            return
        self._count_slots()
        tenants = None if self._shares is None else self._shares.takers(self._waiting.firsts())
        for sequence in self._waiting.candidates(2 * self._running.max_running, tenants):
            if not self._may(sequence) or self._waits(sequence):
                continue
            begins = self._begin(sequence)
            self._is_short = self._is_short or self._running.is_short_of_slots or not begins
            self._count_slots()
            if begins:
                self._began(sequence, first)
            elif not (self._running and self._waiting.is_shared):
                return

    def _may_any(self) -> bool:
        """Whether it is worth looking at the queue."""
        if self._is_short and not self._waiting.is_shared:
            return False
        return self._seats is None or self._seats.may_give(self._waiting.firsts())

    def _count_slots(self) -> None:
        self._shares = self._running.slot_shares() if self._is_short else None

    def _may(self, sequence: Sequence) -> bool:
        """Whether there are slots, room in the step, and a seat for `sequence`."""
        wanted = slots_wanted(sequence) - sequence.num_matched
        if self._shares is not None and self._shares.giver(sequence, wanted) is None:
            return False  # slots are short, and nobody has to give it some
        missing = sequence.num_tokens - sequence.num_matched
        if self._room <= 0 and missing >= self._longest:
            return False
        return self._seats is None or self._seats.seat_for(sequence) is not None

    def _waits(self, sequence: Sequence) -> bool:
        """Whether `sequence` should wait for something that is on its way."""
        return (
            sequence.awaits_grammar
            or awaits_prefix(sequence, self._running, self._running.cache)
            or self._tiers.awaits(sequence)
        )

    def _begin(self, sequence: Sequence) -> bool:
        """Begin with `sequence`, in a seat that is given up for it if none is free. False if slots
        are short.
        """
        seat_giver = None if self._seats is None else self._seats.seat_for(sequence)
        if seat_giver is not None:
            self._plan.drop(seat_giver)
            self._running.suspend(seat_giver)
        begins = self._begin_with_room(sequence)
        if seat_giver is not None and not begins:
            self._running.note_shortage()
        return begins

    def _begin_with_room(self, sequence: Sequence) -> bool:
        """Begin with `sequence`; what holds slots without need, or beyond its share, makes room.
        False if that is not enough.
        """
        while not self._running.begin(sequence):
            if self._tiers.relent() or (not self._running and self._pins.relent()):
                continue
            giver = self._slot_giver(sequence)
            if giver is None:
                return False
            self._plan.drop(giver)
            self._running.preempt(giver)
        return True

    def _slot_giver(self, sequence: Sequence) -> Sequence | None:
        if not (self._running and self._waiting.is_shared):
            return None
        wanted = slots_wanted(sequence) - sequence.num_matched
        return self._running.slot_shares().giver(sequence, wanted)

    def _began(self, sequence: Sequence, first: Callable[[Sequence], None]) -> None:
        if sequence.num_cached is None:
            first(sequence)
        self._room -= sequence.num_pending
        if self._plan.room > 0 and not sequence.is_prefilling:
            self._plan.add(sequence)
        self._seats = self._running.seats()

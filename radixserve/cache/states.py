"""Slots for states of layers that carry one from token to token (convolutions, linear attention): a
state belongs to a position of a sequence, and a prefix can be hit only where its state is kept.

The state behind the token in a slot is in the state slot `of[slot]`, where one was kept:

    position          0   1   2   3   4   5   6   7   8
    slot             40  41  42  43   7   8   9  20  21
    of[slot]         -1  -1  -1   5  -1  -1   2  -1  -1     hits end behind position 3 or 6

A state is never changed once it is written: a step reads the state before its rows and writes the
one behind them elsewhere. So keeping one costs no copy, and a step that failed is computed again
from the same state. A lease holds the state where its sequence is, and one slot for the next:

    step 1    reads nothing (zeros)   writes slot 4                    at position 256
    step 2    reads slot 4            writes 2 (kept), then 6          at position 400
    step 3    reads slot 6            writes 4                         at position 401

Kept are those at multiples of `every`, and at marks: where a prompt ends but for its last token,
where it leaves what is cached, and where a request ended. Others than those at marks never take the
place of one at a mark. Which of the idle ones go first is told in `cache.second_slots`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from radixserve.cache.second_slots import Places, SecondSlots
from radixserve.step import Slots, StatePart

LEAST = 4
"""State slots without which no sequence could be computed: where it hit, where it is, where the
next step leads, and one to keep.
"""


class StateSlots(SecondSlots):
    """The state slots of one cache."""

    first_rows = 1  # for which a lease gets a state slot when it is taken

    def __init__(
        self,
        num_slots: int,
        num_state_slots: int,
        every: int,
        *,
        main_bytes: int = 1,
        slot_bytes: int = 1,
    ) -> None:
        """For a cache of `num_slots` slots, which take `main_bytes` each; a state slot takes
        `slot_bytes`. Inside of sequences a state is kept every so many tokens.
        """
        super().__init__(
            num_slots, num_state_slots, least=LEAST, main_bytes=main_bytes, slot_bytes=slot_bytes
        )
        self.every = every

    def servable(self, slots: Slots) -> int:
        """The length of the longest part of a prefix behind which a state is kept; `slots` are
        those of the prefix.
        """
        kept = np.flatnonzero(self.of[slots] >= 0)
        return int(kept[-1]) + 1 if len(kept) else 0

    def has_room(self, hit: Slots, num_own: int) -> bool:
        """Whether there is a state slot for the first step of `num_own` tokens behind those in the
        slots `hit`, once the state there is held.
        """
        return not num_own or self.num_available - self.num_idle(hit[-1:]) > 0

    def num_private(self, unpublished: Iterable[Slots]) -> int:
        """As in `SecondSlots`; those that no token has are private."""
        return (
            self.num_used
            - int(np.count_nonzero(self._slot_of >= 0))
            + super().num_private(unpublished)
        )

    # what leases do

    def begin(self, slots: Slots, marks: frozenset[int]) -> HeldState:
        """What a lease holds whose next row is behind the tokens in `slots`, where there is a
        state. At `marks`, which are numbers of tokens, states are to be kept.
        """
        return HeldState(self, slots, marks)

    def take(self, *, before_ends: bool = False) -> int | None:
        """A state slot, held, that no token has. None if there is none; with `before_ends` also if
        one at an end would have to go.
        """
        places = self._take(1, before_ends=before_ends)
        return None if places is None else int(places[0])

    def hold(self, place: int) -> None:
        """Hold a state slot once more."""
        self._hold(_one(place))

    def let_go(self, place: int) -> None:
        """Undo one hold of a state slot."""
        self._let_go(_one(place))

    def keep(self, place: int, slot: int, *, is_end: bool) -> None:
        """The state in `place`, which is held, is the one behind the token in `slot`: keep it there
        if none is kept yet.
        """
        if self.of[slot] < 0:
            self.of[slot], self._slot_of[place] = place, slot
        self._is_end[self.of[slot]] |= is_end

    def is_kept(self, place: int) -> bool:
        """Whether a token has the state in `place`."""
        return bool(self._slot_of[place] >= 0)

    def note_end(self, slots: Slots) -> None:
        """Others may go on behind these tokens: a state that is kept there goes after others."""
        self._is_end[self._places(slots[-1:])] = True

    def merge(self, ours: Slots, theirs: Slots) -> None:
        """The tokens in the slots `ours`, which one lease owns, are those in the slots `theirs`,
        which stay. States pass to them where they have none.
        """
        moves = (self.of[ours] >= 0) & (self.of[theirs] < 0)
        self.follow(ours[moves], theirs[moves])
        places = self._places(ours)
        self.of[self._slot_of[places]], self._slot_of[places] = -1, -1
        self._hold(places)
        self._let_go(places)

    def check(self, held: list[Slots]) -> None:
        """Assert what `SecondSlots` does, and that what is held is what leases hold, given the
        state slots of each; O(slots).
        """
        holds = np.zeros(self.allocator.capacity, np.int32)
        for places in held:
            holds[places] += 1
        self._check(holds)


class HeldState:
    """The state slots that one lease holds."""

    __slots__ = ("_kept", "_marks", "_next", "_place", "_states", "position")

    def __init__(self, states: StateSlots, slots: Slots, marks: frozenset[int]) -> None:
        """For a sequence whose next row is behind the tokens in `slots`."""
        self._states, self._marks = states, marks
        self.position = len(slots)
        self._place: int | None = None  # of the state at `position`; None: zeros, at 0
        self._next: int | None = None  # where the next step leads
        self._kept: list[tuple[int, int]] = []  # positions inside of the next step, with places
        if self.position:
            self._place = int(states.of[slots[-1]])
            states.hold(self._place)

    def cover(self, slots: Slots, start: int, stop: int) -> bool:
        """Hold what rows at positions [start, stop) need. False if there are too few state
        slots.
        """
        if self._next is None and stop > start:
            self._next = self._states.take()
        return self._next is not None or stop == start

    def plan(self, start: int, stop: int) -> tuple[StatePart, ...]:
        """How a step that computes rows [start, stop) uses state slots, which are covered. What an
        earlier plan asked for, that did not come to an end, is forgotten.
        """
        assert start == self.position, "a step begins where the state is"
        assert self._next is not None, "its rows are not covered"
        self._forget_plan()
        for position in self._positions_between(start, stop):
            place = self._states.take(before_ends=position not in self._marks)
            if place is not None:
                self._kept.append((position, place))
        self._kept.sort()
        ends = [*self._kept, (stop, self._next)]
        sources = [-1 if self._place is None else self._place, *(place for _, place in self._kept)]
        return tuple(
            StatePart(end, source, place)
            for (end, place), source in zip(ends, sources, strict=True)
        )

    def _positions_between(self, start: int, stop: int) -> list[int]:
        """Where states are kept inside of a step, marks first."""
        every = self._states.every
        marks = sorted(each for each in self._marks if start < each < stop)
        inner = range((start // every + 1) * every, stop, every)
        return [*marks, *(each for each in inner if each not in marks)]

    def reach(self, slots: Slots, position: int) -> None:
        """The step that was planned last is computed, up to `position`; `slots` are those of the
        lease.
        """
        states = self._states
        for at, place in self._kept:
            states.keep(place, int(slots[at - 1]), is_end=at in self._marks)
        self._forget_plan()
        before, self._place, self._next = self._place, self._next, None
        self.position = position
        assert self._place is not None, "a step without a plan"
        if position in self._marks or not position % states.every:
            states.keep(self._place, int(slots[position - 1]), is_end=position in self._marks)
        if before is not None and states.is_kept(before):
            states.let_go(before)
        else:
            self._next = before

    def _forget_plan(self) -> None:
        for _, place in self._kept:
            self._states.let_go(place)
        self._kept = []

    def held(self, slots: Slots) -> Places:
        """The state slots that it holds."""
        own = (self._place, self._next, *(place for _, place in self._kept))
        return np.array([place for place in own if place is not None], np.int32)

    def leave(self, slots: Slots, num_published: int) -> None:
        """Hold nothing any more. The first `num_published` of the lease's slots stay in the tree,
        and others may go on behind them, if that is where the sequence is.
        """
        if self._place is not None and self.position == num_published:
            self._states.keep(self._place, int(slots[num_published - 1]), is_end=True)
        for place in self.held(slots).tolist():
            self._states.let_go(place)
        self._place = self._next = None
        self._kept = []


def _one(place: int) -> Places:
    return np.array([place], np.int32)

"""Slots of a second kind, which only some tokens have: window slots (`cache.windows`), and slots of
states (`cache.states`).

A token has its slot in the cache for as long as its K/V is there at all. `of` says which of the
second slots it has, -1 for none. Leases hold those that their sequences need. All others are idle:
they stay until a lease wants them, so that prompts may branch off there. Those inside of sequences
go first, then those at an end, which is where a request ended, was hit or branched off; of each
kind those that were let go of first. A token whose slot is freed loses both.

Knows slots, no tokens, tree or tensors.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from radixserve.cache.slots import Run, SlotAllocator, runs_of, write_slots
from radixserve.step import Slots

_PARTS = 64  # idle slots are given back in parts of the pool, because finding the oldest is a scan
_ENDS_LATER = 1 << 40  # what puts slots at an end behind all others in the order

Places = np.ndarray[tuple[int], np.dtype[np.int32]]
"""Second slots."""


class SecondSlots:
    """The second slots of one cache. All operations are vectors over the slots that they are given,
    besides the scan when idle ones are given back.
    """

    def __init__(
        self, num_slots: int, num_second: int, *, least: int, main_bytes: int, slot_bytes: int
    ) -> None:
        """For a cache of `num_slots` slots, which take `main_bytes` each; a second slot takes
        `slot_bytes`. Never fewer than `least` second slots are used.
        """
        self.main_bytes, self.slot_bytes = main_bytes, slot_bytes
        self.allocator = SlotAllocator(num_second)
        self.budget = num_second
        self.num_held = 0  # that leases hold
        self.of: Slots = np.full(num_slots, -1, np.int32)
        self._least = least
        self._slot_of: Slots = np.full(num_second, -1, np.int32)  # -1: no token has it
        self._holds = np.zeros(num_second, np.int32)
        self._is_end = np.zeros(num_second, np.bool_)
        self._since = np.zeros(num_second, np.int64)  # when the last hold ended
        self._clock = 0

    @property
    def num_used(self) -> int:
        """Those that are not free."""
        return self.allocator.num_slots - self.allocator.num_free

    @property
    def num_available(self) -> int:
        """Those that can be taken now: free ones, and idle ones."""
        return self.allocator.num_slots - self.num_held

    def num_idle(self, slots: Slots) -> int:
        """How many of these tokens have second slots that no lease holds."""
        places = self._places(slots)
        return int(np.count_nonzero(self._holds[places] == 0))

    def count(self, slots: Slots) -> int:
        """How many of these tokens have second slots."""
        return len(self._places(slots))

    def num_private(self, unpublished: Iterable[Slots]) -> int:
        """How many are not those of published tokens; `unpublished` are the slots of all others."""
        return sum(map(self.count, unpublished))

    # what the cache does

    def follow(self, sources: Slots, targets: Slots) -> None:
        """Tokens have moved from slots to as many others, and keep their second slots."""
        places = self.of[sources]
        self.of[sources], self.of[targets] = -1, places
        self._slot_of[places[places >= 0]] = targets[places >= 0]

    def forget(self, runs: Iterable[Run]) -> None:
        """The slots of `runs` are freed: give their second slots back, which nobody holds."""
        for start, length in runs:
            places = self.of[start : start + length]
            places = places[places >= 0]
            if len(places):
                self._free(places)
        self._keep_budget()

    def resize(self, num_slots: int) -> None:
        """The cache uses `num_slots` slots from now on: use the same share of second slots. Those
        that leases hold beyond that follow when they let go.
        """
        capacity = self.allocator.capacity
        wanted = capacity * num_slots // len(self.of)
        self.budget = min(max(wanted, self._least), capacity)
        if self.allocator.num_slots < self.budget:
            self.allocator.give_back(self.budget - self.allocator.num_slots)
        self._keep_budget()

    def move_down(self, most: int) -> tuple[Places, Places]:
        """Move at most `most` idle ones from the end of the pool to lower places, so that memory
        there can be given back: from which and to which, whose content is to be copied.
        """
        edge = self.allocator.num_slots
        high = edge + np.flatnonzero((self._slot_of[edge:] >= 0) & (self._holds[edge:] == 0))
        sources: Places = high[:most].astype(np.int32)
        targets: Places = np.empty(len(sources), np.int32)
        write_slots(self.allocator.swap(runs_of(sources)), targets)
        for each in (self._slot_of, self._is_end, self._since):
            each[targets] = each[sources]
        self._slot_of[sources] = -1
        self.of[self._slot_of[targets]] = targets
        return sources, targets

    # for subclasses

    def _places(self, slots: Slots) -> Places:
        """The second slots of these tokens, as far as they have some."""
        places = self.of[slots]
        return places[places >= 0]

    def _take(self, count: int, *, before_ends: bool = False) -> Places | None:
        """As many, held once, which no token has. None if there are too few; with `before_ends`
        also if those at ends would have to go.
        """
        self._make_room(count, before_ends=before_ends)
        runs = self.allocator.allocate(count)
        if runs is None:
            return None
        places: Places = np.empty(count, np.int32)
        write_slots(runs, places)
        self._holds[places], self._is_end[places] = 1, False
        self.num_held += count
        return places

    def _hold(self, places: Places) -> None:
        """Hold these once more."""
        self.num_held += int(np.count_nonzero(self._holds[places] == 0))
        self._holds[places] += 1

    def _let_go(self, places: Places) -> None:
        """Undo one hold of each. Those that no token has are free then."""
        self._holds[places] -= 1
        idle = places[self._holds[places] == 0]
        self.num_held -= len(idle)
        self._clock += 1
        self._since[idle] = self._clock
        nobodys = idle[self._slot_of[idle] < 0]
        if len(nobodys):
            self.allocator.free(runs_of(np.sort(nobodys)))
        self._keep_budget()

    def _make_room(self, count: int, *, before_ends: bool = False) -> None:
        """Give idle ones back until `count` are free, as far as there are some."""
        lacking = count - self.allocator.num_free
        if lacking <= 0:
            return
        is_idle = (self._slot_of >= 0) & (self._holds == 0)
        if before_ends:
            is_idle &= ~self._is_end
        idle = np.flatnonzero(is_idle).astype(np.int32)
        most = max(lacking, self.allocator.capacity // _PARTS)
        if most < len(idle):
            order = self._since[idle] + self._is_end[idle] * _ENDS_LATER
            idle = idle[np.argpartition(order, most - 1)[:most]]
        self._free(idle)

    def _free(self, places: Places) -> None:
        assert not self._holds[places].any(), "a second slot that a lease holds is freed"
        self.of[self._slot_of[places]] = -1
        self._slot_of[places] = -1
        self.allocator.free(runs_of(np.sort(places)))

    def _keep_budget(self) -> None:
        """Hold back those that are more than the budget, as far as leases allow it."""
        excess = self.allocator.num_slots - self.budget
        if excess > 0:
            self._make_room(excess)
            self.allocator.hold_back(min(excess, self.allocator.num_free))

    def _check(self, holds: Slots) -> None:
        """Assert that both directions agree, that each is held as often as `holds` says, and that
        the budget is kept; O(slots).
        """
        self.allocator.check()
        used = np.flatnonzero(self._slot_of >= 0)
        assert (self.of[self._slot_of[used]] == used).all(), "a second slot is another token's"
        assert np.count_nonzero(self.of >= 0) == len(used), "two tokens have one second slot"
        is_used = (self._slot_of >= 0) | (self._holds > 0)
        assert np.count_nonzero(is_used) == self.num_used, "a free one is used, or the reverse"
        assert (holds == self._holds).all(), "second slots are held more or less often than needed"
        assert np.count_nonzero(holds) == self.num_held, "held second slots are miscounted"
        assert self.allocator.num_slots >= self.budget, "second slots of the budget are held back"
        assert self.allocator.num_slots == self.budget or not self.num_available, (
            "there are more second slots than the budget, and some could be held back"
        )

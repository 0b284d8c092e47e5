"""Slots for K/V of layers that attend a sliding window: a token has one only while a window may
need it.

A token has its slot in the cache for as long as its K/V is there at all. For layers with a window
it has a second one, a window slot, from a pool of its own. `of` says which:

    position          0   1   2   3   4   5   6   7   8        a window of 4 tokens
    slot             40  41  42  43   7   8   9  20  21
    of[slot]         -1  -1  -1  12  13   3   4   5   6        the next row sees positions 6, 7, 8

So a prefix is servable if its last window - 1 tokens have window slots, however many lack them
before. Leases hold the window slots that their sequence needs next. All others are idle: they stay
until a lease wants them, so that prompts may branch off anywhere. Those inside of sequences go
first, then those before an end, which is where a request ended, was hit or branched off; of each
kind those that were let go of first. A token whose slot is freed loses both.

Knows slots, no tokens, tree or tensors.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from radixserve.cache.slots import Run, SlotAllocator, runs_of, write_slots
from radixserve.step import Slots

STRIDE = 32
"""How many tokens of a sequence get window slots, or lose them, at a time."""

MARGIN = 64
"""How many tokens before an end, or a window's length if that is shorter, a prompt may branch off
and still find its window: a conversation's next turn often replaces the last few tokens.
"""

_PARTS = 64  # idle slots are given back in parts of the pool, because finding the oldest is a scan
_ENDS_LATER = 1 << 40  # what puts slots before an end behind all others in the order

Places = np.ndarray[tuple[int], np.dtype[np.int32]]
"""Window slots."""


class WindowSlots:
    """The window slots of one cache. All operations are vectors over the slots that they are given,
    besides the scan when idle ones are given back.
    """

    def __init__(
        self,
        num_slots: int,
        num_window_slots: int,
        window: int,
        *,
        least: int = 0,
        main_bytes: int = 1,
        slot_bytes: int = 1,
    ) -> None:
        """For a cache of `num_slots` slots, which take `main_bytes` each; a window slot takes
        `slot_bytes`. Never fewer than `least` window slots are used.
        """
        assert window > 1, "a row sees more than itself"
        self.window, self.reach = window, window - 1
        self.stride = STRIDE
        self.main_bytes, self.slot_bytes = main_bytes, slot_bytes
        self.allocator = SlotAllocator(num_window_slots)
        self.budget = num_window_slots
        self.num_held = 0  # window slots that leases hold
        self.of: Slots = np.full(num_slots, -1, np.int32)
        self._least = least
        self._end_length = self.reach + min(MARGIN, self.reach)
        self._slot_of: Slots = np.full(num_window_slots, -1, np.int32)  # -1: free or held back
        self._holds = np.zeros(num_window_slots, np.int32)
        self._is_end = np.zeros(num_window_slots, np.bool_)
        self._since = np.zeros(num_window_slots, np.int64)  # when the last hold ended
        self._clock = 0

    @property
    def num_used(self) -> int:
        """Window slots that tokens have."""
        return self.allocator.num_slots - self.allocator.num_free

    @property
    def num_available(self) -> int:
        """Window slots that can be taken now: free ones, and idle ones."""
        return self.allocator.num_slots - self.num_held

    def num_idle(self, slots: Slots) -> int:
        """How many of these tokens have window slots that no lease holds."""
        places = self._places(slots)
        return int(np.count_nonzero(self._holds[places] == 0))

    def count(self, slots: Slots) -> int:
        """How many of these tokens have window slots."""
        return len(self._places(slots))

    def servable(self, slots: Slots) -> int:
        """The length of the longest part of a prefix whose last `reach` tokens have window slots,
        or all of its tokens if it is shorter; `slots` are those of the prefix.
        """
        if (self.of[slots[-self.reach :]] >= 0).all():
            return len(slots)
        missing = np.flatnonzero(self.of[slots] < 0)
        starts = np.concatenate(([0], missing + 1))  # of the parts between tokens that lack one
        ends = np.concatenate((missing, [len(slots)]))
        serves = ends - starts >= self.reach
        serves[0] = True
        return int(ends[np.flatnonzero(serves)[-1]])

    # what leases do

    def take(self, slots: Slots) -> None:
        """Give these tokens, which have none, window slots, and hold them. So many must be
        available.
        """
        self._make_room(len(slots))
        runs = self.allocator.allocate(len(slots))
        assert runs is not None, "there are fewer window slots than was counted"
        places: Places = np.empty(len(slots), np.int32)
        write_slots(runs, places)
        self.of[slots], self._slot_of[places] = places, slots
        self._holds[places], self._is_end[places] = 1, False
        self.num_held += len(slots)

    def hold(self, slots: Slots) -> None:
        """Hold the window slots of these tokens once more; all have one."""
        places = self.of[slots]
        self.num_held += int(np.count_nonzero(self._holds[places] == 0))
        self._holds[places] += 1

    def let_go(self, slots: Slots) -> None:
        """Undo one hold of the window slots of these tokens."""
        places = self.of[slots]
        self._holds[places] -= 1
        idle = places[self._holds[places] == 0]
        self.num_held -= len(idle)
        self._clock += 1
        self._since[idle] = self._clock
        self._keep_budget()

    def note_end(self, slots: Slots) -> None:
        """The sequence that ends with these tokens may be continued there, or a little before: its
        last window slots go after others.
        """
        self._is_end[self._places(slots[-self._end_length :])] = True

    def merge(self, ours: Slots, theirs: Slots) -> None:
        """The tokens in the slots `ours`, which one lease owns, are those in the slots `theirs`,
        which stay. Window slots and holds pass to them where they have none.
        """
        moves = (self.of[ours] >= 0) & (self.of[theirs] < 0)
        self.follow(ours[moves], theirs[moves])
        both = self.of[ours] >= 0
        mine, kept = self.of[ours[both]], self.of[theirs[both]]
        held = self._holds[mine] > 0
        self.num_held -= int(np.count_nonzero(held & (self._holds[kept] > 0)))
        self._holds[kept] += self._holds[mine]
        self._holds[mine] = 0

    # what the cache does

    def follow(self, sources: Slots, targets: Slots) -> None:
        """Tokens have moved from slots to as many others, and keep their window slots."""
        places = self.of[sources]
        self.of[sources], self.of[targets] = -1, places
        self._slot_of[places[places >= 0]] = targets[places >= 0]

    def forget(self, runs: Iterable[Run]) -> None:
        """The slots of `runs` are freed: give their window slots back, which nobody holds."""
        for start, length in runs:
            places = self.of[start : start + length]
            places = places[places >= 0]
            if len(places):
                self._free(places)
        self._keep_budget()

    def resize(self, num_slots: int) -> None:
        """The cache uses `num_slots` slots from now on: use the same share of window slots. Those
        that leases hold beyond that follow when they let go.
        """
        capacity = self.allocator.capacity
        wanted = capacity * num_slots // len(self.of)
        self.budget = min(max(wanted, self._least), capacity)
        if self.allocator.num_slots < self.budget:
            self.allocator.give_back(self.budget - self.allocator.num_slots)
        self._keep_budget()

    def move_down(self, most: int) -> tuple[Places, Places]:
        """Move at most `most` idle window slots from the end of the pool to lower ones, so that
        memory there can be given back: from which and to which, whose K/V is to be copied.
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

    def _places(self, slots: Slots) -> Places:
        """The window slots of these tokens, as far as they have some."""
        places = self.of[slots]
        return places[places >= 0]

    def _make_room(self, num_slots: int) -> None:
        """Give idle window slots back until `num_slots` are free, as far as there are some."""
        lacking = num_slots - self.allocator.num_free
        if lacking <= 0:
            return
        idle = np.flatnonzero((self._slot_of >= 0) & (self._holds == 0)).astype(np.int32)
        most = max(lacking, self.allocator.capacity // _PARTS)
        if most < len(idle):
            order = self._since[idle] + self._is_end[idle] * _ENDS_LATER
            idle = idle[np.argpartition(order, most - 1)[:most]]
        self._free(idle)

    def _free(self, places: Places) -> None:
        assert not self._holds[places].any(), "a window slot that a lease holds is freed"
        self.of[self._slot_of[places]] = -1
        self._slot_of[places] = -1
        self.allocator.free(runs_of(np.sort(places)))

    def _keep_budget(self) -> None:
        """Hold back window slots that are more than the budget, as far as leases allow it."""
        excess = self.allocator.num_slots - self.budget
        if excess > 0:
            self._make_room(excess)
            self.allocator.hold_back(min(excess, self.allocator.num_free))

    def check(self, held: list[Slots]) -> None:
        """Assert that both directions agree and that what is held is what leases hold, given the
        slots of each; O(slots).
        """
        self.allocator.check()
        used = np.flatnonzero(self._slot_of >= 0)
        assert len(used) == self.num_used, "a free window slot has a token, or a used one has none"
        assert (self.of[self._slot_of[used]] == used).all(), "a window slot is another token's"
        assert np.count_nonzero(self.of >= 0) == len(used), "two tokens have one window slot"
        holds = np.zeros(self.allocator.capacity, np.int32)
        for slots in held:
            assert (self.of[slots] >= 0).all(), "a token that a lease needs has no window slot"
            holds[self.of[slots]] += 1
        assert (holds == self._holds).all(), "window slots are held more or less often than needed"
        assert np.count_nonzero(holds) == self.num_held, "held window slots are miscounted"
        assert self.allocator.num_slots >= self.budget, "window slots of the budget are held back"
        assert self.allocator.num_slots == self.budget or not self.num_available, (
            "there are more window slots than the budget, and some could be held back"
        )


class HeldWindow:
    """The window slots that one lease holds: those of positions `start` to `stop` - 1."""

    __slots__ = ("_windows", "start", "stop")

    def __init__(self, windows: WindowSlots, slots: Slots) -> None:
        """For a sequence whose next row is behind the tokens in `slots`."""
        self._windows = windows
        self.start, self.stop = max(0, len(slots) - windows.reach), len(slots)
        windows.hold(slots[self.start :])

    def cover(self, slots: Slots, start: int, stop: int) -> bool:
        """Hold what rows at positions [start, stop) need, and let go of what lies before. False if
        there are too few window slots for these rows. `slots` are all slots of the lease.
        """
        windows = self._windows
        first = max(0, start - windows.reach)
        if first - self.start >= windows.stride:
            windows.let_go(slots[self.start : first])
            self.start = first
        if stop <= self.stop:
            return True
        further = min(len(slots), stop + windows.stride - 1)
        if further - self.stop > windows.num_available:
            further = stop
        if further - self.stop > windows.num_available:
            return False
        windows.take(slots[self.stop : further])
        self.stop = further
        return True

    def let_go(self, slots: Slots) -> None:
        """Hold nothing any more."""
        self._windows.let_go(slots[self.start : self.stop])
        self.start = self.stop

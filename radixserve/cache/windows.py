"""Slots for K/V of layers that attend a sliding window: a token has one only while a window may
need it.

For layers with a window a token has a slot of its own, a window slot, from another pool:

    position          0   1   2   3   4   5   6   7   8        a window of 4 tokens
    slot             40  41  42  43   7   8   9  20  21
    of[slot]         -1  -1  -1  12  13   3   4   5   6        the next row sees positions 6, 7, 8

So a prefix is servable if its last window - 1 tokens have window slots, however many lack them
before. Which of the idle ones go first is told in `cache.second_slots`.
"""

from __future__ import annotations

import numpy as np

from radixserve.cache.second_slots import SecondSlots
from radixserve.step import Slots

STRIDE = 32
"""How many tokens of a sequence get window slots, or lose them, at a time."""

MARGIN = 64
"""How many tokens before an end, or a window's length if that is shorter, a prompt may branch off
and still find its window: a conversation's next turn often replaces the last few tokens.
"""


class WindowSlots(SecondSlots):
    """The window slots of one cache."""

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
        super().__init__(
            num_slots, num_window_slots, least=least, main_bytes=main_bytes, slot_bytes=slot_bytes
        )
        assert window > 1, "a row sees more than itself"
        self.window, self.reach = window, window - 1
        self.stride = STRIDE
        self._end_length = self.reach + min(MARGIN, self.reach)

    @property
    def first_rows(self) -> int:
        """Rows for which a lease gets window slots when it is taken."""
        return self.window

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

    def has_room(self, hit: Slots, num_own: int) -> bool:
        """Whether there are window slots for the first of `num_own` tokens behind those in the
        slots `hit`, once the window before them is held.
        """
        newly_held = self.num_idle(hit[-self.reach :])
        return min(num_own, self.window) <= self.num_available - newly_held

    # what leases do

    def begin(self, slots: Slots, marks: frozenset[int]) -> HeldWindow:
        """What a lease holds whose next row is behind the tokens in `slots`."""
        return HeldWindow(self, slots)

    def take(self, slots: Slots) -> None:
        """Give these tokens, which have none, window slots, and hold them. So many must be
        available.
        """
        places = self._take(len(slots))
        assert places is not None, "there are fewer window slots than was counted"
        self.of[slots], self._slot_of[places] = places, slots

    def hold(self, slots: Slots) -> None:
        """Hold the window slots of these tokens once more; all have one."""
        self._hold(self.of[slots])

    def let_go(self, slots: Slots) -> None:
        """Undo one hold of the window slots of these tokens."""
        self._let_go(self.of[slots])

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

    def check(self, held: list[Slots]) -> None:
        """Assert what `SecondSlots` does, and that what is held is what leases hold, given the
        slots of each; O(slots).
        """
        holds = np.zeros(self.allocator.capacity, np.int32)
        for slots in held:
            assert (self.of[slots] >= 0).all(), "a token that a lease needs has no window slot"
            holds[self.of[slots]] += 1
        self._check(holds)


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

    def held(self, slots: Slots) -> Slots:
        """The slots whose window slots it holds, of all slots of the lease."""
        return slots[self.start : self.stop]

    def leave(self, slots: Slots, num_published: int) -> None:
        """Hold nothing any more. The first `num_published` of the lease's slots stay in the tree,
        and others may go on behind them.
        """
        self._windows.note_end(slots[:num_published])
        self._windows.let_go(slots[self.start : self.stop])
        self.start = self.stop

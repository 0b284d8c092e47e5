"""Free K/V slots, kept as runs of neighbours, and slots that are held back from use.

A slot is the place of one token's K and V at all layers; slots are numbered from 0 on and none is
reserved. A run `(start, length)` names neighbouring slots, so that long prefixes cost a few numbers
and their K/V is a slice of the pool. Knows nothing of tokens, trees or tensors: only which slots
are free, and which are held back because the budget is smaller than the pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from sortedcontainers import SortedDict

from radixserve.step import Slots

Run = tuple[int, int]
"""(start, length): slots start .. start+length-1. Plain tuples, because trees hold very many of
them.
"""


def split_runs(runs: Sequence[Run], num_slots: int) -> tuple[list[Run], list[Run]]:
    """The first `num_slots` slots of `runs`, and the others; O(len(runs))."""
    remaining = num_slots
    for index, (start, length) in enumerate(runs):
        if remaining < length:
            head, tail = list(runs[:index]), list(runs[index:])
            if remaining:
                head.append((start, remaining))
                tail[0] = (start + remaining, length - remaining)
            return head, tail
        remaining -= length
    assert remaining == 0, f"runs hold {remaining} slots fewer than the {num_slots} to split off"
    return list(runs), []


def append_runs(runs: list[Run], more: Iterable[Run]) -> None:
    """Put the slots of `more` behind those of `runs`, joining runs that meet."""
    for start, length in more:
        if runs and sum(runs[-1]) == start:
            runs[-1] = (runs[-1][0], runs[-1][1] + length)
        else:
            runs.append((start, length))


def write_slots(runs: Sequence[Run], table: Slots) -> None:
    """Write the slots of `runs`, one after the other, over `table` (int32, as many places as the
    runs have slots).
    """
    if len(runs) == 1:
        start, length = runs[0]
        table[:] = np.arange(start, start + length, dtype=np.int32)
    elif runs:
        start_of, length_of = np.array(runs, dtype=np.int32).T
        shift = start_of - np.concatenate(([0], np.cumsum(length_of[:-1], dtype=np.int32)))
        table[:] = np.arange(len(table), dtype=np.int32) + np.repeat(shift, length_of)


def runs_of(slots: Slots) -> list[Run]:
    """The slots as runs, in their order."""
    parts = np.split(slots, np.flatnonzero(np.diff(slots) != 1) + 1)
    return [(int(part[0]), len(part)) for part in parts if len(part)]


class SlotAllocator:
    """Hands out slots and takes them back; a slot is never out twice.

    With 12 slots, of which 2, 3, 4, 8 and 10 are free:

        _stop_at    {2: 5, 8: 9, 10: 11}        start of a free run -> the slot after its last
        _start_at   {5: 2, 9: 8, 11: 10}        the same, inverted: finds a neighbour to join
        _starts     {1: [8, 10], 3: [2]}        length -> starts of free runs, sorted: best fit
        _state      001110001010                one byte per slot: finds a double free of any shape

    Free runs never touch each other. An operation costs a few dict accesses per run handed out or
    taken back, and O(log(different lengths)) where a length appears or disappears.

    Slots that are held back (`_state` 2) are neither free nor handed out, and `num_slots` does not
    count them. They are the highest ones that could be taken, so that the memory at the end of the
    pool can be given back.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots  # free or handed out
        self.num_free = 0
        self.held: list[Run] = []  # held back, by start
        self._stop_at: dict[int, int] = {}
        self._start_at: dict[int, int] = {}
        self._starts: SortedDict = (
            SortedDict()
        )  # the starts are a dict's keys: a set whose order is that of insertion
        self._state = bytearray(num_slots)  # 0 handed out, 1 free, 2 held back
        if num_slots:
            self.free([(0, num_slots)])

    @property
    def capacity(self) -> int:
        """All slots of the pool."""
        return len(self._state)

    @property
    def end(self) -> int:
        """The first of the slots at the end of the pool that are all held back."""
        start, length = self.held[-1] if self.held else (self.capacity, 0)
        return start if start + length == self.capacity else self.capacity

    def allocate(self, num_slots: int) -> list[Run] | None:
        """`num_slots` slots as one run where one is long enough (the shortest such), else as few
        runs as possible.

        None, and nothing handed out, when fewer are free.
        """
        if num_slots > self.num_free:
            return None
        runs: list[Run] = []
        while num_slots > 0:
            # Longest first until the rest fits into one run: no choice needs fewer runs.
            length = next(self._starts.irange(num_slots), None) or self._starts.keys()[-1]
            start = next(reversed(self._starts[length]))
            taken = min(length, num_slots)
            self._take(start, length, taken)
            append_runs(runs, [(start, taken)])
            num_slots -= taken
        return runs

    def _take(self, start: int, length: int, taken: int) -> None:
        """Cut the first `taken` slots off the free run (start, length)."""
        cut, stop = start + taken, start + length
        self._forget(start, stop)
        if cut < stop:
            self._note(cut, stop)
        self._state[start:cut] = bytes(taken)
        self.num_free -= taken

    def hold_back(self, num_slots: int) -> None:
        """Hold back `num_slots` more slots, of which so many must be free. O(runs * log(runs))."""
        assert num_slots <= self.num_free, "only free slots can be held back"
        self._hold(self._give_up_held() + num_slots)

    def give_back(self, num_slots: int) -> None:
        """Make `num_slots` slots free that were held back. O(runs * log(runs))."""
        num_held = self._give_up_held()
        assert num_slots <= num_held, "not so many slots are held back"
        self._hold(num_held - num_slots)

    def swap(self, runs: list[Run]) -> list[Run]:
        """Take `runs` back, and hand out as many of the lowest slots for them that are free or held
        back. Others are held back instead. O(runs * log(runs)).
        """
        num_held, num_slots = self._give_up_held(), sum(length for _, length in runs)
        lower: list[Run] = []
        for start, length in self.free_runs():
            if num_slots:
                taken = min(length, num_slots)
                self._take(start, length, taken)
                lower.append((start, taken))
                num_slots -= taken
        assert not num_slots, "there is nothing to swap with"
        self.free(runs)
        self._hold(num_held)
        return lower

    def _hold(self, num_slots: int) -> None:
        """Hold back the highest `num_slots` free slots."""
        self.num_slots -= num_slots
        for start, length in reversed(self.free_runs()):
            if not num_slots:
                break
            taken = min(length, num_slots)
            cut, stop = start + length - taken, start + length
            self._forget(start, stop)
            if start < cut:
                self._note(start, cut)
            self._state[cut:stop] = b"\2" * taken
            self.num_free -= taken
            self.held.insert(0, (cut, taken))
            num_slots -= taken

    def _give_up_held(self) -> int:
        """Make all slots free that are held back; returns how many."""
        held, self.held = self.held, []
        num_held = sum(length for _, length in held)
        for start, length in held:
            self._state[start : start + length] = bytes(length)
        self.num_slots += num_held
        self.free(held)
        return num_held

    def free(self, runs: Iterable[Run]) -> None:
        """Take slots back. Raises AssertionError (a bug of ours, `-O` or not) if one of them is
        free already.
        """
        for start, length in runs:
            stop = start + length
            exist = 0 <= start < stop <= self.capacity
            if not exist or self._state.count(0, start, stop) < length:
                raise AssertionError(
                    f"slots {start}..{stop - 1} were freed twice, or never existed"
                )
            self._state[start:stop] = b"\1" * length
            self.num_free += length
            if start in self._start_at:
                left = self._start_at[start]
                self._forget(left, start)
                start = left
            if stop in self._stop_at:
                right = self._stop_at[stop]
                self._forget(stop, right)
                stop = right
            self._note(start, stop)

    def _note(self, start: int, stop: int) -> None:
        """Add the free run start .. stop-1 to the three dicts."""
        self._stop_at[start] = stop
        self._start_at[stop] = start
        starts = self._starts.get(stop - start)
        if starts is None:
            self._starts[stop - start] = {start: None}
        else:
            starts[start] = None

    def _forget(self, start: int, stop: int) -> None:
        """Undo _note()."""
        del self._stop_at[start]
        del self._start_at[stop]
        starts = self._starts[stop - start]
        del starts[start]
        if not starts:
            del self._starts[stop - start]

    def free_runs(self) -> list[Run]:
        """The free runs by start; O(free runs)."""
        return [(start, stop - start) for start, stop in sorted(self._stop_at.items())]

    def check(self) -> None:
        """Assert that the views above agree and that no two free runs touch; O(num_slots)."""
        runs = self.free_runs()
        state = bytearray(self.capacity)
        for start, length in runs:
            assert length > 0, f"the free run at {start} is empty"
            assert not any(state[max(start - 1, 0) : start + length]), (
                f"the free run at {start} touches another"
            )
            state[start : start + length] = b"\1" * length
        assert self.num_free == sum(state), (
            f"{sum(state)} slots are free, {self.num_free} are counted"
        )
        for start, length in self.held:
            state[start : start + length] = b"\2" * length
        assert state == self._state, "the runs and the map of slots differ"
        assert self.held == sorted(self.held), "what is held back is not in order"
        assert self.num_slots == self.capacity - state.count(2), "slots held back are miscounted"
        assert self._start_at == {start + length: start for start, length in runs}, (
            "a free run's end is misnoted"
        )
        by_length = sorted(
            (length, start) for length, starts in self._starts.items() for start in starts
        )
        assert by_length == sorted((length, start) for start, length in runs), (
            "a free run stands under a wrong length"
        )
        assert all(self._starts.values()), "a length is noted that no free run has"

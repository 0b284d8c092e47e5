"""Free K/V slots, kept as runs of neighbours.

A slot is the place of one token's K and V at all layers; slots are numbered 0 .. num_slots-1 and
none is reserved. A run `(start, length)` names neighbouring slots, so that long prefixes cost a few
numbers and their K/V is a slice of the pool. Knows nothing of tokens, trees or tensors: only which
slots are free.
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


class SlotAllocator:
    """Hands out slots and takes them back; a slot is never out twice.

    With 12 slots, of which 2, 3, 4, 8 and 10 are free:

        _stop_at    {2: 5, 8: 9, 10: 11}        start of a free run -> the slot after its last
        _start_at   {5: 2, 9: 8, 11: 10}        the same, inverted: finds a neighbour to join
        _starts     {1: [8, 10], 3: [2]}        length -> starts of free runs, sorted: best fit
        _is_free    001110001010                one byte per slot: finds a double free of any shape

    Free runs never touch each other. An operation costs a few dict accesses per run handed out or
    taken back, and O(log(different lengths)) where a length appears or disappears.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.num_free = 0
        self._stop_at: dict[int, int] = {}
        self._start_at: dict[int, int] = {}
        self._starts: SortedDict = (
            SortedDict()
        )  # the starts are a dict's keys: a set whose order is that of insertion
        self._is_free = bytearray(num_slots)
        if num_slots:
            self.free([(0, num_slots)])

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
        self._is_free[start:cut] = bytes(taken)
        self.num_free -= taken

    def free(self, runs: Iterable[Run]) -> None:
        """Take slots back. Raises AssertionError (a bug of ours, `-O` or not) if one of them is
        free already.
        """
        for start, length in runs:
            stop = start + length
            if not 0 <= start < stop <= self.num_slots or self._is_free.find(1, start, stop) >= 0:
                raise AssertionError(
                    f"slots {start}..{stop - 1} were freed twice, or never existed"
                )
            self._is_free[start:stop] = b"\1" * length
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
        """Assert that the four views above agree and that no two free runs touch; O(num_slots)."""
        runs = self.free_runs()
        is_free = bytearray(self.num_slots)
        for start, length in runs:
            assert length > 0, f"the free run at {start} is empty"
            assert not any(is_free[max(start - 1, 0) : start + length]), (
                f"the free run at {start} touches another"
            )
            is_free[start : start + length] = b"\1" * length
        assert is_free == self._is_free, "the free runs and the map of free slots differ"
        assert self.num_free == sum(is_free), (
            f"{sum(is_free)} slots are free, {self.num_free} are counted"
        )
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

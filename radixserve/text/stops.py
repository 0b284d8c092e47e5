"""Finds stop strings in text that arrives in parts.

It runs one Knuth-Morris-Pratt automaton per stop string, so each character costs amortised O(1),
however the text is cut into parts. The stop string that is complete first wins; of those that are
complete at the same character, the longest. Knows characters, no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StopMatch(NamedTuple):
    stop: str
    end: int  # characters of the fed part up to and including the last one of the stop string


class StopMatcher:
    """Reads text part by part. It finds where a stop string ends, and how much text could still
    become one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string would stop everything"
        self._stops = sorted(dict.fromkeys(stops), key=len, reverse=True)
        self._borders = [_borders(stop) for stop in self._stops]
        self._states = [0] * len(
            self._stops
        )  # characters of each stop string matched by the end of the text
        self._first_chars = sorted({stop[0] for stop in self._stops})

    @property
    def num_held(self) -> int:
        """Length of the longest suffix of the text that is the beginning of a stop string."""
        return max(self._states, default=0)

    def feed(self, part: str) -> StopMatch | None:
        """Read `part` up to the first complete stop string; O(len(part) x stop strings), and much
        less if none begins in it.
        """
        if not self.num_held and not any(char in part for char in self._first_chars):
            return None
        for index, char in enumerate(part):
            if (stop := self._advance(char)) is not None:
                return StopMatch(stop, index + 1)
        return None

    def _advance(self, char: str) -> str | None:
        complete = None
        for number, stop in enumerate(self._stops):
            state, borders = self._states[number], self._borders[number]
            while state and stop[state] != char:
                state = borders[state - 1]
            state += stop[state] == char
            if state == len(stop):
                complete = complete or stop
                state = borders[state - 1]
            self._states[number] = state
        return complete


def _borders(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper prefix that is also its
    suffix.
    """
    borders = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = borders[length - 1]
        length += stop[index] == stop[length]
        borders[index] = length
    return borders

"""Counts what cached prefixes saved: tokens by their depth in the prompt, and the time that
computing them would have taken.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter

from radixserve.declared import Numbers
from radixserve.engine.counters import DEPTH_BORDERS, DEPTHS, HIT_TOKENS, SAVED_SECONDS


class Savings:
    """Totals since the engine started."""

    def __init__(self) -> None:
        self._tokens: Counter[str] = Counter()
        self._seconds = 0.0

    def add(self, num_cached: int, tokens_per_second: float) -> None:
        """Count a prompt whose first `num_cached` tokens were found while steps computed
        `tokens_per_second` prompt tokens (0: not known yet, so no time is counted).
        """
        for index in range(bisect_right(DEPTH_BORDERS, num_cached)):
            last = index + 1 == len(DEPTH_BORDERS)
            stop = num_cached if last else min(num_cached, DEPTH_BORDERS[index + 1])
            self._tokens[DEPTHS[index]] += stop - DEPTH_BORDERS[index]
        if tokens_per_second > 0:
            self._seconds += num_cached / tokens_per_second

    def numbers(self) -> Numbers:
        """The totals, as declared in `engine.counters`."""
        return {
            SAVED_SECONDS.key(): self._seconds,
            **{HIT_TOKENS.key(depth): count for depth, count in self._tokens.items()},
        }

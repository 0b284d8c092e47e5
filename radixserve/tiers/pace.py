"""Decides whether loading K/V is faster than computing it, from the speeds of recent loads and
prefills.

One thread writes and another reads: two floats each, and an outdated one does no harm.
"""

from __future__ import annotations

TELLING_TOKENS = 64  # a step with fewer prompt tokens tells little about the speed of prefill
_MEMORY = 0.9  # weight of all earlier observations at each new one
# One of so many loads that seem too slow is tried all the same: a slow disk may be fast now.
_TRY_AGAIN = 16


class Rate:
    """Seconds per token, a moving average in which the latest observations weigh most."""

    def __init__(self) -> None:
        self._seconds = self._tokens = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Note that `num_tokens` took `seconds`."""
        self._seconds = _MEMORY * self._seconds + seconds
        self._tokens = _MEMORY * self._tokens + num_tokens

    @property
    def seconds_per_token(self) -> float | None:
        return self._seconds / self._tokens if self._tokens else None


class Pace:
    """The speeds at which prefill computes and a tier loads."""

    def __init__(self) -> None:
        self.prefill = Rate()
        self.load = Rate()
        self._refused = 0

    def prefill_seconds(self, num_tokens: int) -> float | None:
        """How long computing `num_tokens` would take; None before anything was observed."""
        pace = self.prefill.seconds_per_token
        return None if pace is None else num_tokens * pace

    def worth_loading(self) -> bool:
        """Whether loading is probably faster than computing. True while the speed of one of them is
        unknown.
        """
        load, prefill = self.load.seconds_per_token, self.prefill.seconds_per_token
        if load is None or prefill is None or load < prefill:
            return True
        self._refused += 1
        return self._refused % _TRY_AGAIN == 0

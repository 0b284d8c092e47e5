"""Is K/V loaded sooner than it is computed? Both are learned from what was seen of late.

Written by one thread and read by another: two floats each, and a stale one does no harm.
"""

from __future__ import annotations

_MEMORY = 0.9  # weight of what was seen before, at each new observation
_TRY_AGAIN = (
    16  # one of so many that are not worth it is loaded all the same: what was slow may be fast now
)


class Rate:
    """Seconds per token, the latest observations weighing most."""

    def __init__(self) -> None:
        self._seconds = self._tokens = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Something took `seconds` for `num_tokens`."""
        self._seconds = _MEMORY * self._seconds + seconds
        self._tokens = _MEMORY * self._tokens + num_tokens

    @property
    def seconds_per_token(self) -> float | None:
        return self._seconds / self._tokens if self._tokens else None


class Pace:
    """How fast prefill computes and how fast a tier loads."""

    def __init__(self) -> None:
        self.prefill = Rate()
        self.load = Rate()
        self._refused = 0

    def prefill_seconds(self, num_tokens: int) -> float:
        """How long computing would take; 0 while nobody knows."""
        return num_tokens * (self.prefill.seconds_per_token or 0.0)

    def worth_loading(self) -> bool:
        """Loading is the faster way, as far as is known; where one of them was never seen it is
        tried.
        """
        load, prefill = self.load.seconds_per_token, self.prefill.seconds_per_token
        if load is None or prefill is None or load < prefill:
            return True
        self._refused += 1
        return self._refused % _TRY_AGAIN == 0

"""A circuit breaker for writes: after repeated errors, as of a full or broken disk, writing stops
for a while.

Knows errors and a monotonic clock. Logs one line when writing stops and one when it continues.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

PATIENCE = 3  # errors in a row before writing stops
FIRST_SECONDS = 10.0
LONGEST_SECONDS = 600.0

log = logging.getLogger(__name__)


class Breaker:
    """The circuit breaker. Its waits double; at the end of each one write is tried."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._errors = 0
        self._until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether nothing should be written now."""
        return self._errors >= PATIENCE and self._clock() < self._until

    def failed(self, error: Exception) -> None:
        """A write failed."""
        self._errors += 1
        if self._errors < PATIENCE:
            return
        wait = min(FIRST_SECONDS * 2.0 ** min(self._errors - PATIENCE, 16), LONGEST_SECONDS)
        self._until = self._clock() + wait
        if self._errors == PATIENCE:
            log.warning(
                "the disk store stops writing, and tries again from time to time: %s", error
            )

    def worked(self) -> None:
        """A write succeeded."""
        if self._errors >= PATIENCE:
            log.warning("the disk store writes again")
        self._errors = 0

"""Decides which requests are refused because too many wait before them.

A long queue suits clients that send many requests at once and wait for all of them. If more comes
than the server computes, it only makes everybody wait, and it has to be emptied when the overload
is over. So the queue may be long until it overflows, and is kept short from then on:

    expected wait
      max_queue_seconds         /\\
                               /  \\
      overload_queue_seconds  /    \\______________
                          ___/                    \\___
                          more comes than is computed

From the first refusal on nothing is admitted until the queue is short, then only as much as is
computed. The overload is over once the queue is short and nobody was refused for a while. All this
is the state of one tenant: what one sends too much leaves the queue of the others long.

Knows no requests and no messages.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from radixserve.config import Settings
from radixserve.front.backlog import Ahead

log = logging.getLogger(__name__)

QUIET_SECONDS: Final = 10.0  # without a refusal, after which an overload is over


class Overload:
    """Which tenants send too much at present."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused_at: dict[str, float] = {}  # the last time, by tenant that sends too much

    def refusal(
        self, tenant: str, ahead: Ahead, waiting: Counter[str], limits: Settings
    ) -> str | None:
        """Why a new request of `tenant` is refused; None if it may wait behind what is `ahead`.
        `waiting` counts those that wait by tenant.
        """
        longest = self._longest_wait(tenant, ahead, limits)
        if ahead.requests >= limits.max_queue:
            reason = f"{ahead.requests} requests wait already"
        elif limits.max_queue_tokens and ahead.tokens >= limits.max_queue_tokens:
            reason = f"{ahead.tokens:.0f} prompt tokens wait to be computed already"
        elif ahead.seconds > longest:
            reason = f"a request would wait for {ahead.seconds:.0f} seconds"
        else:
            return None
        self._note(tenant, reason, waiting, limits)
        return reason

    def _longest_wait(self, tenant: str, ahead: Ahead, limits: Settings) -> float:
        """The longest wait that a request of `tenant` may expect now, in seconds."""
        refused_at = self._refused_at.get(tenant)
        if refused_at is None:
            return limits.max_queue_seconds
        short = _short_wait(limits)
        if ahead.seconds <= short and self._clock() - refused_at >= QUIET_SECONDS:
            del self._refused_at[tenant]
        return short

    def _note(self, tenant: str, reason: str, waiting: Counter[str], limits: Settings) -> None:
        """A request of `tenant` is refused. Forgets tenants whose overload is over."""
        now = self._clock()
        if tenant not in self._refused_at:
            log.warning(
                "the queue of tenant %s is full: %s; it is kept below %g seconds until nobody was "
                "refused for %g seconds",
                *(tenant, reason, _short_wait(limits), QUIET_SECONDS),
            )
        self._refused_at = {
            each: at
            for each, at in self._refused_at.items()
            if each in waiting or now - at < QUIET_SECONDS
        }
        self._refused_at[tenant] = now


def _short_wait(limits: Settings) -> float:
    return min(limits.overload_queue_seconds, limits.max_queue_seconds)

"""How long a request that comes now will probably wait, and when a refused one should come back.

Two things can make it wait: prompt tokens that must be computed before its own, and sequences that
must end before it gets a seat. Both are estimated from recent speeds; the longer one counts. Tokens
that the cache holds cost nothing, so a full queue of cached prompts is a short one. Knows no
process and no limits.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from radixserve.engine.counters import BACKLOG_TOKENS, COMPUTED, PREFILL_RATE, PROMPT_TOKENS
from radixserve.step import EngineStats
from radixserve.tenants import num_before

LONGEST_RETRY_SECONDS: Final = 60
_JITTER: Final = 0.2  # so that clients that were refused together do not come back together
_NEWEST: Final = 0.1  # weight of the newest value in an average


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a new request would have to wait for."""

    requests: int
    tokens: float  # prompt tokens still to be computed
    seconds: float  # until it begins, as far as it can be told


class Backlog:
    """What the engine has still to do, as of its last report and what was sent to it since."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reported = self._rate = 0.0  # uncached tokens, and tokens per second
        self._sent = 0.0  # tokens of prompts since the report
        self._computed = self._prompts = 0.0  # totals of the last report
        self._uncached = 1.0  # share of prompt tokens that were not cached lately
        self._ended_at: float | None = None  # the last end after which others still waited
        self._seconds_between_ends = 0.0

    def report(self, stats: EngineStats) -> None:
        """Take over the engine's figures."""
        self._reported, self._sent = stats.value(BACKLOG_TOKENS), 0.0
        self._rate = stats.value(PREFILL_RATE) or self._rate
        computed, prompts = stats.value(PROMPT_TOKENS, COMPUTED), stats.total(PROMPT_TOKENS)
        if prompts > self._prompts:
            share = (computed - self._computed) / (prompts - self._prompts)
            self._uncached += _NEWEST * (share - self._uncached)
        self._computed, self._prompts = computed, prompts

    def sent(self, num_tokens: int) -> None:
        """A prompt of so many tokens was sent to the engine."""
        self._sent += num_tokens

    def ended(self, *, others_wait: bool) -> None:
        """A request has ended. How fast seats become free shows only between two ends with others
        waiting all the time; before the first of them the server may have been idle for hours.
        """
        now = self._clock()
        if others_wait and self._ended_at is not None:
            gap = now - self._ended_at
            known = self._seconds_between_ends
            self._seconds_between_ends = known + _NEWEST * (gap - known) if known else gap
        self._ended_at = now if others_wait else None

    @property
    def tokens(self) -> float:
        """Prompt tokens still to be computed."""
        return self._reported + self._uncached * self._sent

    def seconds(self, num_waiting: int) -> float:
        """How long a request waits that comes behind `num_waiting` others; 0 while no speed was
        measured.
        """
        computing = self.tokens / self._rate if self._rate else 0.0
        return max(computing, num_waiting * self._seconds_between_ends) if num_waiting else 0.0

    def ahead(self, tenant: str, waiting: Counter[str]) -> Ahead:
        """What comes before a new request of `tenant`. `waiting` counts those that wait, by
        tenant.
        """
        requests, total = num_before(tenant, waiting), waiting.total()
        share = requests / total if total else 0.0
        return Ahead(requests, self.tokens * share, self.seconds(total) * share)


def retry_after(seconds: float) -> int:
    """Seconds for the header `Retry-After`, 1 to 60, differing from one client to the next."""
    spread = seconds * random.uniform(1 - _JITTER, 1 + _JITTER)
    return min(LONGEST_RETRY_SECONDS, max(1, math.ceil(spread)))

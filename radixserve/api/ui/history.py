"""The last ten minutes of a few numbers, second by second, so that a page that is opened now can
draw what happened before. Used from the event loop's thread.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

import msgspec

from radixserve.cache.counters import GHOST_HIT_TOKENS, KV_BYTES
from radixserve.engine.counters import COMPUTED, GENERATED_TOKENS, PROMPT_TOKENS, RUNNING, WAITING
from radixserve.front.protocol import EngineClient

SECONDS = 600


class Sample(msgspec.Struct, kw_only=True):
    """The server in one second. Counts of tokens are those of this second."""

    at: float  # seconds since the epoch
    computed: int  # prompt tokens
    cached: int  # prompt tokens
    generated: int
    ghosts: int  # prompt tokens that twice the memory would have kept; of the computed ones
    running: int
    waiting: int
    used_bytes: int  # K/V on the device, leased or evictable
    leased_bytes: int
    budget_bytes: int


class History:
    """Takes a sample each second; O(1) each."""

    def __init__(self, engine: EngineClient) -> None:
        self.samples: deque[Sample] = deque(maxlen=SECONDS)
        self._engine = engine
        self._seen = (0, 0, 0, 0)  # totals at the last sample

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await asyncio.sleep(1 - math.modf(time.time())[0])
            self.sample()

    def sample(self) -> Sample:
        """Take a sample now. A total that fell means that a new engine counts from zero."""
        stats, info = self._engine.stats, self._engine.info
        totals = (
            int(stats.value(PROMPT_TOKENS, COMPUTED)),
            int(stats.total(PROMPT_TOKENS) - stats.value(PROMPT_TOKENS, COMPUTED)),
            int(stats.value(GENERATED_TOKENS)),
            int(stats.value(GHOST_HIT_TOKENS, "2x")),
        )
        if any(now < before for now, before in zip(totals, self._seen, strict=True)):
            self._seen = (0, 0, 0, 0)
        computed, cached, generated, ghosts = (
            now - before for now, before in zip(totals, self._seen, strict=True)
        )
        self._seen = totals
        taken = Sample(
            at=time.time(),
            computed=computed,
            cached=cached,
            generated=generated,
            ghosts=ghosts,
            running=int(stats.value(RUNNING)),
            waiting=int(stats.value(WAITING)),
            used_bytes=int(stats.value(KV_BYTES, "used")),
            leased_bytes=int(stats.value(KV_BYTES, "leased")),
            budget_bytes=info.num_slots * info.slot_bytes if info else 0,
        )
        self.samples.append(taken)
        return taken

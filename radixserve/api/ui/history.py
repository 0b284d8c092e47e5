"""The last ten minutes of a few numbers, second by second, so that a page that is opened now can
draw what happened before. Used from the event loop's thread.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque

import msgspec

from radixserve.api.ui.tenants import TenantNow, tenants_now
from radixserve.cache.counters import GHOST_HIT_TOKENS, KV_BYTES
from radixserve.engine.counters import (
    COMPUTED,
    GENERATED_TOKENS,
    LOSS_TOKENS,
    PROMPT_TOKENS,
    RUNNING,
    TENANT_PROMPT_TOKENS,
    WAITING,
)
from radixserve.front.protocol import EngineClient
from radixserve.step import EngineStats
from radixserve.tiers import DEVICE, NAMES
from radixserve.tiers.counters import TIER_BYTES

SECONDS = 600

_Key = tuple[str, str]


class Sample(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The server in one second. Counts of tokens are those of this second; what is 0 is left out of
    the dicts.
    """

    at: float  # seconds since the epoch
    computed: int  # prompt tokens
    cached: int  # prompt tokens
    found: dict[str, int] = {}  # the cached ones by the tier that had them
    lost: dict[str, int] = {}  # prompt tokens that were not found, by cause
    generated: int
    ghosts: int  # prompt tokens that twice the memory would have kept; of the computed ones
    running: int
    waiting: int
    used_bytes: int  # K/V on the device, leased or evictable
    leased_bytes: int
    budget_bytes: int
    tiers: dict[str, tuple[int, int]] = {}  # used and budget bytes of the tiers below the device
    # prompt tokens, cached and computed, by tenant
    tenants: dict[str, tuple[int, int]] = {}


class History:
    """Takes a sample each second; O(series of the engine) each.

    Attributes:
        tenants: what the tenants had at the last sample.
    """

    def __init__(self, engine: EngineClient) -> None:
        self.samples: deque[Sample] = deque(maxlen=SECONDS)
        self.tenants: list[TenantNow] = []
        self._engine = engine
        self._seen: Counter[_Key] = Counter()  # totals at the last sample

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await asyncio.sleep(1 - math.modf(time.time())[0])
            self.sample()

    def sample(self) -> Sample:
        """Take a sample now. A total that fell means that a new engine counts from zero."""
        stats, info = self._engine.stats, self._engine.info
        totals = _totals(stats)
        if any(totals[key] < before for key, before in self._seen.items()):
            self._seen = Counter()
        new = totals - self._seen
        self._seen = totals
        self.tenants = tenants_now(stats)
        found = {each: new["found", each] for each in (DEVICE, *NAMES) if new["found", each]}
        taken = Sample(
            at=time.time(),
            computed=new["found", COMPUTED],
            cached=sum(found.values()),
            found=found,
            lost={name: count for (kind, name), count in new.items() if kind == "lost"},
            generated=new["generated", ""],
            ghosts=new["ghosts", ""],
            running=int(stats.value(RUNNING)),
            waiting=int(stats.value(WAITING)),
            used_bytes=int(stats.value(KV_BYTES, "used")),
            leased_bytes=int(stats.value(KV_BYTES, "leased")),
            budget_bytes=info.num_slots * info.slot_bytes if info else 0,
            tiers=_tiers(stats),
            tenants=_by_tenant(new, [each.name for each in self.tenants]),
        )
        self.samples.append(taken)
        return taken


def _totals(stats: EngineStats) -> Counter[_Key]:
    """The totals whose increase a sample tells."""
    totals = {("generated", ""): stats.value(GENERATED_TOKENS)}
    totals["ghosts", ""] = stats.value(GHOST_HIT_TOKENS, "2x")
    for (source,) in PROMPT_TOKENS.series():
        totals["found", source] = stats.value(PROMPT_TOKENS, source)
    for (cause,) in LOSS_TOKENS.series():
        totals["lost", cause] = stats.value(LOSS_TOKENS, cause)
    for (name, *labels), value in stats.numbers.items():
        if name == TENANT_PROMPT_TOKENS.name:
            tenant, source = labels
            kind = "computed for" if source == COMPUTED else "cached for"
            totals[kind, tenant] = totals.get((kind, tenant), 0) + value
    return Counter({key: int(value) for key, value in totals.items()})


def _by_tenant(new: Counter[_Key], names: list[str]) -> dict[str, tuple[int, int]]:
    found = {name: (new["cached for", name], new["computed for", name]) for name in names}
    return {name: both for name, both in found.items() if any(both)}


def _tiers(stats: EngineStats) -> dict[str, tuple[int, int]]:
    """Used and budget bytes of the tiers that there are."""
    numbers = {
        name: (
            int(stats.value(TIER_BYTES, name, "used")),
            int(stats.value(TIER_BYTES, name, "budget")),
        )
        for name in NAMES
    }
    return {name: (used, budget) for name, (used, budget) in numbers.items() if budget}

"""What each tenant has in the engine now, as the page shows it."""

from __future__ import annotations

from typing import Final

import msgspec

from radixserve.cache.counters import TENANT_KV_BYTES
from radixserve.engine.counters import TENANT_PROMPT_TOKENS, TENANT_REQUESTS
from radixserve.step import EngineStats

MAX_TENANTS: Final = 50  # in one event
_METRICS: Final = (TENANT_PROMPT_TOKENS.name, TENANT_REQUESTS.name, TENANT_KV_BYTES.name)


class TenantNow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One tenant at one moment."""

    name: str
    kv_bytes: int = 0  # on the device
    running: int = 0
    waiting: int = 0


def tenants_now(stats: EngineStats) -> list[TenantNow]:
    """The tenants that the engine knows, those with most requests and then K/V first, at most
    MAX_TENANTS. O(series of the engine).
    """
    names = {labels[0] for name, *labels in stats.numbers if name in _METRICS}
    found = [
        TenantNow(
            name=name,
            kv_bytes=int(stats.value(TENANT_KV_BYTES, name)),
            running=int(stats.value(TENANT_REQUESTS, name, "running")),
            waiting=int(stats.value(TENANT_REQUESTS, name, "waiting")),
        )
        for name in names
    ]
    found.sort(key=lambda each: (-each.running - each.waiting, -each.kv_bytes, each.name))
    return found[:MAX_TENANTS]

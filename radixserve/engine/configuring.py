"""Changes settings of a running engine.

The front has checked the values, and tells a new engine all that were changed. A budget shrinks in
parts between which steps run, because what is evicted may have to be copied to host memory. Memory
that goes back to the system, and slots that running requests hold, follow later.
"""

from __future__ import annotations

from dataclasses import replace

from radixserve.cache.kvcache import KVCache
from radixserve.cache.policies.table import make_policy
from radixserve.cache.survey import Parts
from radixserve.engine.scheduler import Scheduler
from radixserve.engine.tiers import Tiers
from radixserve.questions import Configure, Configured
from radixserve.tiers import DEVICE
from radixserve.tiers.host import HostTier

PART = 512  # slots by which a budget shrinks at a time


class Configuring:
    """The settings of one engine that may change."""

    def __init__(self, cache: KVCache, scheduler: Scheduler, tiers: Tiers) -> None:
        self._cache, self._scheduler = cache, scheduler
        self._host = tiers.host

    def change(self, asked: Configure) -> Parts[Configured]:
        """Make the change. A policy takes over before budgets change, and decides what goes."""
        scheduler, evicted = self._scheduler, {}
        if asked.eviction_policy is not None:
            for cache in self._caches():
                cache.slots.change_policy(make_policy(asked.eviction_policy, cache.slots.budget))
        for tier, resizing in self._resizings(asked):
            evicted[tier] = yield from resizing
        if asked.prefill_share is not None:
            scheduler.pace.share = asked.prefill_share
        if asked.max_running is not None:
            scheduler.limits = replace(scheduler.limits, max_running=asked.max_running)
        return Configured(evicted_tokens=evicted, excess_bytes=self._excess())

    def _caches(self) -> list[KVCache]:
        return [self._cache, *([self._host.cache] if self._host is not None else [])]

    def _resizings(self, asked: Configure) -> list[tuple[str, Parts[int]]]:
        """The changes of budgets by tier. Host memory comes first where it grows, so that it has
        room for what the device evicts.
        """
        found: list[tuple[str, Parts[int]]] = []
        if asked.kv_budget is not None:
            found.append((DEVICE, self._resize_device(asked.kv_budget)))
        host = self._host
        if asked.host_budget is not None and host is not None:
            grows = host.slots_in(asked.host_budget) > host.cache.slots.budget
            resizing = (host.name, self._resize_host(host, asked.host_budget))
            found.insert(0 if grows else len(found), resizing)
        return found

    def _resize_device(self, num_bytes: int) -> Parts[int]:
        """Change the budget of the device; returns how many tokens were evicted."""
        slots = self._cache.slots
        wanted = min(num_bytes // slots.slot_bytes, slots.allocator.capacity)
        self._scheduler.adapters.budget = max(1, wanted)
        return (yield from self.resize_kv())

    def resize_kv(self) -> Parts[int]:
        """Let K/V have what adapters leave of the device's budget, after pins have let go of more
        than their share of it; returns how many tokens were evicted.
        """
        scheduler, evicted, wanted = self._scheduler, 0, self._scheduler.adapters.kv_slots
        scheduler.pins.limit(int(scheduler.limits.pin_share * wanted))
        in_use = scheduler.budget - self._cache.slots.allocator.num_free
        for num_slots in _down_to(wanted, in_use):
            evicted += scheduler.resize(num_slots)
            yield
        return evicted

    def _resize_host(self, host: HostTier, num_bytes: int) -> Parts[int]:
        evicted, cache, wanted = 0, host.cache, host.slots_in(num_bytes)
        host.limit_kept(wanted)
        in_use = cache.slots.budget - cache.slots.allocator.num_free
        for num_slots in _down_to(wanted, in_use):
            evicted += cache.slots.resize(num_slots)
            yield
        return evicted

    def _excess(self) -> dict[str, int]:
        """Bytes that leases keep from being held back, by tier."""
        device = self._cache.stats().num_slots - self._scheduler.budget
        excess = {DEVICE: device * self._cache.slots.slot_bytes}
        if self._host is not None:
            excess[self._host.name] = self._host.excess_bytes
        return {name: num_bytes for name, num_bytes in excess.items() if num_bytes > 0}


def _down_to(wanted: int, in_use: int) -> list[int]:
    """The budgets between, in slots: one jump up, or over what is free, then small steps down."""
    return [*range(in_use - PART, wanted, -PART), wanted]

"""The lower tiers as the scheduler sees them: fetches K/V of waiting sequences from them, and gives
them computed K/V.

A waiting sequence asks each tier once for the K/V that the device does not hold, and waits while it
is fetched. The K/V then goes to slots of its own and is published like computed K/V, so that
admission finds it as an ordinary prefix hit. If anything fails on the way, or takes longer than
computing would, it is a miss: the sequence computes.

    fetch    asked of a tier -> in host memory -> (CUDA: copied beside steps) -> in slots, published
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from radixserve.cache.kvcache import KVCache, Lease
from radixserve.engine.sequence import Sequence
from radixserve.prefix import Prefix
from radixserve.step import TierStats
from radixserve.tensors.copies import Copies, Copy, write_slots
from radixserve.tensors.kv import KV, KVPool
from radixserve.tiers.disk import DiskTier, Load
from radixserve.tiers.host import HostTier

MIN_FETCH = 16  # tokens; fewer are computed as fast
_PREFILL = 64  # tokens; a step with fewer tells little about the speed of prefill
_PATIENCE_SECONDS = 0.5  # to wait for the disk, or as long as computing would take if that is more
COPY_SECONDS = 0.001  # how often a copy under way is polled while nothing else is to be done


@dataclass(slots=True)
class _Fetch:
    """K/V of a prefix that is being fetched for a waiting sequence. The lease keeps the part of the
    prefix that is on the device.
    """

    sequence: Sequence
    tier: str
    prefix: Prefix
    lease: Lease
    until: float  # time.monotonic() seconds when waiting for the disk is no longer worth it
    load: Load | None = None  # while the disk reads it
    copy: Copy | None = None  # once it is in host memory


class Tiers:
    """Host memory and disk below a device's cache. Without them its methods do nothing."""

    def __init__(
        self,
        cache: KVCache,
        pool: KVPool | None = None,
        host: HostTier | None = None,
        disk: DiskTier | None = None,
    ) -> None:
        self.host, self.disk = host, disk
        self.promoted_tokens = {"host": 0, "disk": 0}
        self._cache, self._pool = cache, pool
        self.below = [tier for tier in (host, disk) if tier is not None]
        self._copies = Copies(pool.k.device) if pool is not None else None
        self._fetches: list[_Fetch] = []
        if host is not None:
            cache.on_evict = host.demote

    def fileno(self) -> int | None:
        """A file descriptor that is readable when `settle` has something to do; None without a
        disk.
        """
        return self.disk.fileno() if self.disk else None

    @property
    def patience(self) -> float | None:
        """How many seconds to sleep at most while nothing can be computed: 0 if nothing is under
        way, None if the file descriptor will tell.
        """
        if (self.host is not None and self.host.busy) or any(fetch.copy for fetch in self._fetches):
            return COPY_SECONDS
        if self._fetches:
            return max(COPY_SECONDS, min(fetch.until for fetch in self._fetches) - time.monotonic())
        return None if self.disk is not None and self.disk.writing else 0.0

    def awaits(self, sequence: Sequence) -> bool:
        """Whether `sequence` should wait for K/V that is being fetched. Asks the tiers that it has
        not asked yet.
        """
        if not (self.below and self._cache.enabled and sequence.reads_cache):
            return False
        if any(self._serves(fetch, sequence) for fetch in self._fetches):
            return True
        while sequence.num_asked < len(self.below):
            tier = self.below[sequence.num_asked]
            sequence.num_asked += 1
            if self._ask(tier, sequence):
                return True
        return False

    def save(self, sequence: Sequence) -> None:
        """Queue the computed K/V of `sequence`, all published, to be written to the disk."""
        if self.disk is not None and self._cache.enabled and sequence.request.keeps_cache:
            self.disk.save(sequence.prefix(sequence.num_computed))

    def relent(self) -> bool:
        """Slots are short: give up writes that hold some. False if there are none."""
        return self.disk is not None and self.disk.relent()

    def settle(self) -> None:
        """To be called between two steps: publish fetched K/V, release the slots of finished
        writes.
        """
        if not self.below:
            return
        if self.host is not None:
            self.host.settle()
        if self.disk is not None:
            self.disk.settle()
        self._fetches = [fetch for fetch in self._fetches if not self._ended(fetch)]

    def computed(self, num_tokens: int, seconds: float) -> None:
        """Note how long a step took. The speed of prefill decides whether loading is worth it."""
        if self.disk is not None and num_tokens >= _PREFILL:
            self.disk.pace.prefill.observe(num_tokens, seconds)

    def stats(self) -> TierStats:
        """What the tiers hold now, and running totals."""
        stats = TierStats(
            promoted_host_tokens_total=self.promoted_tokens["host"],
            promoted_disk_tokens_total=self.promoted_tokens["disk"],
        )
        if self.host is not None:
            self.host.describe(stats)
        if self.disk is not None:
            self.disk.describe(stats)
        return stats

    def close(self, seconds: float) -> None:
        """Write to the disk what is queued, for at most `seconds`."""
        if self.disk is not None:
            self.disk.close(seconds)

    def _serves(self, fetch: _Fetch, sequence: Sequence) -> bool:
        """Whether `sequence` can use what is being fetched."""
        return (
            sequence is fetch.sequence
            or sequence.shared_prefix(fetch.sequence) >= fetch.lease.num_cached + MIN_FETCH
        )

    def _ask(self, tier: HostTier | DiskTier, sequence: Sequence) -> bool:
        """Ask one tier for what the device does not hold; True if something may come."""
        prefix = sequence.prefix(sequence.num_tokens - 1)  # the last one is computed in any case
        lease = self._cache.hold(prefix)
        depth, num_missing = lease.num_cached, prefix.num_tokens - lease.num_cached
        fetch = _Fetch(sequence, tier.name, prefix, lease, time.monotonic())
        if num_missing >= MIN_FETCH:
            if isinstance(tier, DiskTier):
                fetch.until += max(_PATIENCE_SECONDS, tier.pace.prefill_seconds(num_missing))
                fetch.load = tier.load(prefix, depth)
            else:
                self._arrive(fetch, tier.fetch(prefix, depth))
        if self._ended(fetch):
            return False
        self._fetches.append(fetch)
        return True

    def _arrive(self, fetch: _Fetch, kv: KV | None) -> None:
        assert self._copies is not None, "tiers stand below a pool"
        fetch.load = None
        fetch.copy = self._copies.up(kv) if kv is not None else None

    def _ended(self, fetch: _Fetch) -> bool:
        """Advance a fetch to its next stage if it is ready for it; True once it has ended."""
        if fetch.load is not None and fetch.load.done:
            self._arrive(fetch, fetch.load.kv)
        if fetch.load is not None and time.monotonic() >= fetch.until:
            fetch.load.give_up()
            fetch.load = None
        if fetch.load is not None or (fetch.copy is not None and not fetch.copy.arrived):
            return False
        with fetch.lease:
            if fetch.copy is not None:
                self._publish(fetch, fetch.copy.kv)
        return True

    def _publish(self, fetch: _Fetch, kv: KV) -> None:
        """Write the K/V to slots, if there is room, and publish it."""
        assert self._pool is not None, "tiers stand below a pool"
        lease, depth = fetch.lease, fetch.lease.num_cached
        stop = depth + kv[0].shape[1]
        if not lease.grow(stop):
            return
        write_slots(self._pool, lease.slots[depth:stop], kv)
        lease.publish(fetch.prefix.first(stop))
        self.promoted_tokens[fetch.tier] += stop - depth
        fetch.sequence.num_promoted[fetch.tier] += stop - depth

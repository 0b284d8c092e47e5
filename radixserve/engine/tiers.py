"""The tiers below the device as the scheduler sees them: fetches K/V of waiting sequences from
them, and offers them K/V.

A waiting sequence asks each tier once, in order, for the K/V that the device does not hold, and
waits while it is fetched. The K/V then goes to slots of its own and is published like computed K/V,
so that admission finds it as an ordinary prefix hit. If anything fails on the way, or takes longer
than computing would, it is a miss: the sequence computes.

    fetch    asked of a tier -> in host memory -> (CUDA: copied beside steps) -> in slots, published

Knows tiers by their contract (`tiers.contract`): neither which there are nor how many, but for the
host tier, whose budget may change.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as List
from dataclasses import dataclass

from radixserve.cache.kvcache import KVCache, Lease
from radixserve.declared import Numbers
from radixserve.engine.sequence import Sequence
from radixserve.prefix import Branch, Prefix
from radixserve.questions import Pin
from radixserve.step import GivenUp, Slots, TierLoad
from radixserve.tensors.copies import Copies, Copy, write_slots
from radixserve.tensors.kv import KV, KVPool
from radixserve.tiers.contract import COPY_SECONDS, Dropping, Load, Tier
from radixserve.tiers.counters import TIER_TOKENS
from radixserve.tiers.host import HostTier
from radixserve.tiers.trimming import trimmings_of

MIN_FETCH = 16  # tokens; fewer are computed as fast


@dataclass(slots=True)
class _Fetch:
    """K/V of a prefix that is being fetched for a waiting sequence. The lease keeps the part of the
    prefix that is on the device.
    """

    sequence: Sequence
    tier: str
    prefix: Prefix
    lease: Lease
    begun: float  # time.monotonic() seconds
    load: Load | None = None  # while the tier reads it
    copy: Copy | None = None  # once it is in host memory


class Tiers:
    """The memory of a device's cache, and the tiers below it, in the order in which they are asked.
    Without any of both its methods do nothing.
    """

    def __init__(self, cache: KVCache, pool: KVPool | None = None, below: List[Tier] = ()) -> None:
        self.below = tuple(below)
        self.promoted_tokens = {tier.name: 0 for tier in self.below}
        self._cache, self._pool = cache, pool
        self._copies = Copies(pool.k.device) if pool is not None else None
        self._fetches: list[_Fetch] = []
        on_host = pool is not None and pool.k.device.type == "cpu"
        self._trimmings = trimmings_of(cache, pool) if pool is not None and on_host else []
        if any(tier.takes == "evicted" for tier in self.below):
            cache.slots.on_evict = self._demote

    @property
    def trimming_patience(self) -> float | None:
        """How many seconds to sleep at most while memory of the device's pool is to be given back;
        None: as long as nothing else happens.
        """
        patiences = (each.patience for each in self._trimmings)
        return min((seconds for seconds in patiences if seconds is not None), default=None)

    @property
    def host(self) -> HostTier | None:
        """The host tier, if there is one."""
        return next((tier for tier in self.below if isinstance(tier, HostTier)), None)

    def filenos(self) -> list[int]:
        """File descriptors that are readable when `settle` has something to do."""
        told = (tier.fileno() for tier in self.below)
        return [each for each in told if each is not None]

    @property
    def patience(self) -> float | None:
        """How many seconds to sleep at most while nothing can be computed: 0 if nothing is under
        way, None if a file descriptor will tell.
        """
        each = [tier.patience for tier in self.below]
        each += [self._patience_of(fetch) for fetch in self._fetches]
        timed = [seconds for seconds in each if seconds]
        return min(timed) if timed else None if None in each else 0.0

    def _patience_of(self, fetch: _Fetch) -> float:
        if fetch.load is None:
            return COPY_SECONDS
        return max(COPY_SECONDS, fetch.load.until - time.monotonic())

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
        """Offer the computed K/V of `sequence`, all published."""
        if not (self.below and self._cache.enabled and sequence.request.keeps_cache):
            return
        assert sequence.lease is not None, "what is computed is under a lease"
        if sequence.lease.is_withheld:
            return
        prefix = sequence.prefix(sequence.num_computed)
        self._offer("computed", prefix, sequence.lease.slots[: sequence.num_computed])

    def _demote(self, prefix: Prefix, slots: Slots) -> None:
        """Offer K/V that the device is about to evict; its cache calls this as `OnEvict`."""
        self._offer("evicted", prefix, slots)

    def _offer(self, kind: str, prefix: Prefix, slots: Slots) -> None:
        for tier in self.below:
            if tier.takes == kind:
                tier.offer(prefix, slots)

    def offer_cached(self, prefix: Prefix) -> None:
        """Offer what the device has of `prefix`, which may have been computed long ago."""
        if self.below:
            with self._cache.hold(prefix) as lease:
                self._offer("computed", prefix.first(lease.num_cached), lease.slots)

    def keep(self, pins: List[Pin]) -> None:
        """Have all tiers evict nothing of these pins; see `Tier.keep`."""
        for tier in self.below:
            tier.keep(pins)

    def pins_left(self) -> list[Pin]:
        """The pins that an earlier server has left in a tier."""
        return [pin for tier in self.below for pin in tier.pins_left()]

    def drop(self, branch: Branch) -> list[Dropping]:
        """Have all tiers forget `branch`, also what is on its way up from them. One answer for each
        tier.
        """
        for fetch in self._fetches:
            if branch.covers(fetch.prefix):
                fetch.lease.withhold()
        return [tier.drop(branch) for tier in self.below]

    def drop_unused(self, namespaces: frozenset[str] | None, seconds: float) -> list[Dropping]:
        """Have all tiers forget what was not used for so long, in these namespaces (None: in
        all).
        """
        return [tier.drop_unused(namespaces, seconds) for tier in self.below]

    def relent(self) -> bool:
        """Slots are short: have a tier let go of some that it holds. False if none does."""
        return any(tier.relent() for tier in self.below)

    def settle(self) -> None:
        """To be called between two steps: let tiers finish what has arrived, publish what was
        fetched, and give memory of the device's pool back that the budget has lost.
        """
        for trimming in self._trimmings:
            trimming.work()
        for tier in self.below:
            tier.settle()
        self._fetches = [fetch for fetch in self._fetches if not self._ended(fetch)]

    def computed(self, num_tokens: int, seconds: float) -> None:
        """Note how long a step took."""
        for tier in self.below:
            tier.prefilled(num_tokens, seconds)

    def numbers(self) -> Numbers:
        """What the tiers count."""
        found: Numbers = {
            TIER_TOKENS.key(name, "up"): count for name, count in self.promoted_tokens.items()
        }
        for tier in self.below:
            found.update(tier.numbers())
        return found

    def close(self, seconds: float) -> None:
        """Let tiers keep what was offered, for at most `seconds` together."""
        until = time.monotonic() + seconds
        for tier in self.below:
            tier.close(max(0.0, until - time.monotonic()))

    def _serves(self, fetch: _Fetch, sequence: Sequence) -> bool:
        """Whether `sequence` can use what is being fetched."""
        return (
            sequence is fetch.sequence
            or sequence.shared_prefix(fetch.sequence) >= fetch.lease.num_cached + MIN_FETCH
        )

    def _ask(self, tier: Tier, sequence: Sequence) -> bool:
        """Ask one tier for what the device does not hold; True if something may come."""
        prefix = sequence.prefix(sequence.num_tokens - 1)  # the last one is computed in any case
        lease = self._cache.hold(prefix)
        fetch = _Fetch(sequence, tier.name, prefix, lease, time.monotonic())
        if prefix.num_tokens - lease.num_cached >= MIN_FETCH:
            fetch.load = tier.fetch(prefix, lease.num_cached)
        if self._ended(fetch):
            return False
        self._fetches.append(fetch)
        return True

    def _arrive(self, fetch: _Fetch, load: Load) -> None:
        assert self._copies is not None, "tiers stand below a pool"
        fetch.load = None
        fetch.copy = self._copies.up(load.kv) if load.kv is not None else None
        if load.kv is None and (load.num_found or 0) > load.depth:
            _give_up(fetch, "declined", load.num_found)

    def _ended(self, fetch: _Fetch) -> bool:
        """Advance a fetch to its next stage if it is ready for it; True once it has ended."""
        if fetch.load is not None and fetch.load.done:
            self._arrive(fetch, fetch.load)
        if fetch.load is not None and time.monotonic() >= fetch.load.until:
            fetch.load.give_up()
            _give_up(fetch, "late", fetch.load.num_found)
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
        if lease.is_withheld:
            return
        if not lease.grow(stop):
            _give_up(fetch, "no_room", stop)
            return
        write_slots(self._pool, lease.slots[depth:stop], kv)
        lease.publish(fetch.prefix.first(stop))
        self.promoted_tokens[fetch.tier] += stop - depth
        promoted = fetch.sequence.num_promoted
        promoted[fetch.tier] = promoted.get(fetch.tier, 0) + stop - depth
        _note_load(fetch, stop - depth)


def _give_up(fetch: _Fetch, why: GivenUp, num_found: int | None) -> None:
    """K/V does not come, of which the tier has the first `num_found` tokens (None: not known)."""
    sequence = fetch.sequence
    if num_found is None or sequence.unloaded is None:
        sequence.unloaded = None
    else:
        sequence.unloaded = max(sequence.unloaded, num_found)
    _note_load(fetch, 0, why)


def _note_load(fetch: _Fetch, num_tokens: int, given_up: GivenUp | None = None) -> None:
    """Keep the times and the outcome of a load for the trace of its request."""
    sequence = fetch.sequence
    if sequence.admitted_at is None:
        since = fetch.begun - sequence.request.arrived
        seconds = time.monotonic() - fetch.begun
        sequence.loads.append(TierLoad(fetch.tier, since, seconds, num_tokens, given_up))

"""The host tier: K/V that the device evicted, kept in host memory under its own budget and its own
order of eviction.

It uses the same parts as the device: a `KVCache` for who has which slot, a `KVPool` for the
tensors. K/V is demoted with its whole prefix, because a leaf needs its ancestors here too; the
ancestors are still on the device at that time, and those that are here already are not copied
again. Runs on the engine's thread; copies run while steps run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from radixserve.cache.ages import Ages
from radixserve.cache.kvcache import KVCache, Lease
from radixserve.cache.listing import list_tree
from radixserve.cache.policies.policy import Policy
from radixserve.cache.survey import NODES, drop_unused, first_serial
from radixserve.declared import Numbers
from radixserve.prefix import Branch, Prefix
from radixserve.questions import Pin, ShowTree
from radixserve.step import Slots
from radixserve.tensors.copies import Copies, Copy, read_slots, write_slots
from radixserve.tensors.kv import KVPool, KVShape
from radixserve.tiers.contract import COPY_SECONDS, Dropping, Found, Load, Showing
from radixserve.tiers.counters import TIER_BYTES, TIER_GHOST_HIT_TOKENS, TIER_TOKENS
from radixserve.tiers.kept import KeptPrefixes
from radixserve.tiers.trimming import trimmings_of


@dataclass(slots=True)
class _Demotion:
    """K/V on its way from the device to the host. The lease holds its slots in host memory."""

    prefix: Prefix
    lease: Lease
    copy: Copy


class HostTier:
    """Host memory for K/V of prefixes for which the device has no slots."""

    name: Final = "host"
    takes: Final = "evicted"

    def __init__(
        self,
        device_pool: KVPool,
        shape: KVShape,
        num_slots: int,
        copies: Copies,
        policy: Policy | None = None,
        pin_share: float = 0.25,
    ) -> None:
        """Reserves `num_slots` slots of `shape`, which may have another dtype than the device's
        pool: the largest budget. `policy` is the cache's own (`KVCache`). What is pinned may fill
        `pin_share` of the budget.
        """
        self.cache = KVCache(num_slots, policy=policy, hindsight="misses")
        self.cache.tree.number_behind(first_serial())
        self.demoted_tokens_total = 0
        self._pool = KVPool(shape, num_slots, torch.device("cpu"))
        [self._trimming] = trimmings_of(self.cache, self._pool)
        self._device_pool = device_pool
        self._copies = copies
        self._falling: list[_Demotion] = []
        self._pin_share = pin_share
        self._kept = KeptPrefixes(self.cache, int(pin_share * num_slots))
        self._ages = Ages(time.monotonic())
        self._walks: deque[Iterator[None]] = deque()  # over the tree, a part at a time

    def numbers(self) -> Numbers:
        """See `Tier.numbers`."""
        cache, slot_bytes = self.cache.stats(), self._pool.slot_bytes
        assert self.cache.slots.hindsight is not None, "it is asked for"
        ghosts = self.cache.slots.hindsight.ghost_hits
        return {
            **{TIER_GHOST_HIT_TOKENS.key(self.name, name): n for name, n in ghosts.items()},
            TIER_BYTES.key(self.name, "budget"): cache.num_slots * slot_bytes,
            TIER_BYTES.key(self.name, "used"): (cache.num_slots - cache.free) * slot_bytes,
            TIER_TOKENS.key(self.name, "down"): self.demoted_tokens_total,
        }

    @property
    def patience(self) -> float | None:
        """Copies from the device are polled."""
        is_busy = self._falling or self._walks or self.cache.dropped.pending
        if is_busy or self._trimming.patience == 0:
            return COPY_SECONDS
        return self._trimming.patience or 0.0

    def fileno(self) -> int | None:
        """There is none: `patience` says when to look."""
        return None

    def match(self, prefix: Prefix) -> Found:
        """How much of `prefix` is kept; known at once."""
        return Found(self.cache.match(prefix), done=True)

    def offer(self, prefix: Prefix, slots: Slots) -> None:
        """Keep K/V that the device is about to evict. Does nothing if there is no room for it.

        The copy out of the slots is launched here, before anything that could overwrite them.
        """
        lease = self.cache.receive(prefix)
        if lease is None:
            return
        lacking = slots[lease.num_cached :]
        if not len(lacking):
            lease.release()
            return
        self._falling.append(
            _Demotion(prefix, lease, self._copies.down(read_slots(self._device_pool, lacking)))
        )
        self._publish_arrived()

    def settle(self) -> None:
        """Publish the copies that have arrived, free some of what was dropped, give back some
        memory that the budget has lost, and go on with a walk over the tree.
        """
        self._ages.note(self.cache.evictor.clock, time.monotonic())
        self.cache.slots.sweep(NODES)
        self._trimming.work()
        self._walk_on()
        self._publish_arrived()

    def _publish_arrived(self) -> None:
        """Publish the copies that have arrived, in the order of demotion, in which they also
        arrive.
        """
        while self._falling and self._falling[0].copy.arrived:
            fallen = self._falling.pop(0)
            with fallen.lease as lease:
                first = lease.num_cached
                write_slots(self._pool, lease.slots[first:], fallen.copy.kv)
                lease.publish(fallen.prefix)
                self.demoted_tokens_total += lease.num_published - first
            self._kept.came(fallen.prefix)

    def keep(self, pins: Sequence[Pin]) -> None:
        """See `Tier.keep`."""
        self._kept.keep([each.prefix for each in pins])

    def pins_left(self) -> list[Pin]:
        """None: memory does not outlive the process."""
        return []

    @property
    def capacity_bytes(self) -> int:
        """The largest budget."""
        return self._pool.num_slots * self._pool.slot_bytes

    @property
    def excess_bytes(self) -> int:
        """What copies under way hold beyond the budget."""
        return (self.cache.stats().num_slots - self.cache.slots.budget) * self._pool.slot_bytes

    def slots_in(self, num_bytes: int) -> int:
        """The slots of a budget, at least one and at most all."""
        return max(1, min(num_bytes // self._pool.slot_bytes, self._pool.num_slots))

    def limit_kept(self, num_slots: int) -> None:
        """Let pins hold their share of so many slots: the budget is about to change."""
        self._kept.limit(int(self._pin_share * num_slots))

    def fetch(self, prefix: Prefix, depth: int) -> Load:
        """A copy of K/V, made at once."""
        load = Load(prefix, depth, until=0.0, done=True)
        assert self.cache.slots.hindsight is not None, "it is asked for"
        with self.cache.hold(prefix) as lease:
            self.cache.slots.hindsight.missed(prefix, max(depth, lease.num_cached))
            if lease.num_cached > depth:
                lease.note_hit()
                k, v = read_slots(self._pool, lease.slots[depth:])
                is_pinned = self._device_pool.k.is_cuda
                load.kv = (k.pin_memory(), v.pin_memory()) if is_pinned else (k, v)
        return load

    def drop(self, branch: Branch) -> Dropping:
        """See `Tier.drop`; done at once, while the memory is freed by `settle`."""
        before = self.cache.tree.num_tokens - self.cache.dropped.left_tokens()
        self.cache.drop(branch)
        for falling in self._falling:
            if branch.covers(falling.prefix):
                falling.lease.withhold()
        self._kept.dropped()
        after = self.cache.tree.num_tokens - self.cache.dropped.left_tokens()
        return Dropping(before - after, done=True)

    def drop_unused(self, namespaces: frozenset[str] | None, seconds: float) -> Dropping:
        """See `Tier.drop_unused`; done by `settle`, in parts."""
        now, dropping = time.monotonic(), Dropping()

        def is_old(last_use: int) -> bool:
            return self._ages.age(last_use, now) > seconds

        self._walks.append(self._unused(dropping, namespaces, is_old))
        return dropping

    def _unused(
        self,
        dropping: Dropping,
        namespaces: frozenset[str] | None,
        is_old: Callable[[int], bool],
    ) -> Iterator[None]:
        tokens, _ = yield from drop_unused(self.cache, namespaces, is_old)
        dropping.num_tokens, dropping.done = tokens, True

    def show(self, question: ShowTree) -> Showing:
        """See `Tier.show`; done by `settle`, in parts."""
        showing = Showing()
        self._walks.append(
            showing.worked_out(list_tree(self.cache, self._ages, question, self._kept.leases()))
        )
        return showing

    def _walk_on(self) -> None:
        """Do one part of the first walk."""
        while self._walks:
            for _ in self._walks[0]:
                return
            self._walks.popleft()

    def prefilled(self, num_tokens: int, seconds: float) -> None:
        """Copying is faster in any case."""

    def relent(self) -> bool:
        """No slots of the device are held here."""
        return False

    def close(self, seconds: float) -> bool:
        """What is in memory goes with the process."""
        return True

"""An engine with tiers below it, over a model whose K/V can be read and yet lies in a real pool, as
real tensors.
"""

from __future__ import annotations

import select
import time
from collections import defaultdict
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import torch

from radixserve.cache.kvcache import KVCache, nodes_of
from radixserve.engine.core import EngineCore
from radixserve.engine.scheduler import Limits
from radixserve.engine.tiers import Tiers
from radixserve.prefix import Prefix
from radixserve.questions import AnyQuestion, Asked, Pin
from radixserve.request import Request
from radixserve.step import TokenEvent
from radixserve.store.folder.disk import Disk
from radixserve.store.folder.disk_store import DiskStore
from radixserve.tensors.copies import Copies
from radixserve.tensors.kv import KVPool, KVShape
from radixserve.tiers.contract import COPY_SECONDS, Tier
from radixserve.tiers.disk import DiskTier
from radixserve.tiers.host import HostTier
from radixserve.tiers.pace import Pace
from tests.engine.content_model import ContentModel
from tests.store.parts import QuickDisk

CPU = torch.device("cpu")
SHAPE = KVShape(layers=2, kv_heads=1, k_dim=64, v_dim=64, dtype=torch.float32)  # 1 KiB per token
MAX_STEPS = 5000
PATIENCE_SECONDS = 60.0
LONGEST_SLEEP = 0.05  # seconds; memory that is given back may pause for a minute

_NUMBERS: dict[tuple[int, ...], int] = {}  # of contents, the same for every engine of this process
_CONTENTS: list[tuple[int, ...]] = []


class PoolContent(MutableMapping[int, tuple[int, ...]]):
    """Contents by slot, each as a number that fills the slot's K and, negative, its V at all
    layers.
    """

    def __init__(self, pool: KVPool) -> None:
        self.pool = pool

    def __setitem__(self, slot: int, content: tuple[int, ...]) -> None:
        if content not in _NUMBERS:
            _NUMBERS[content] = len(_CONTENTS)
            _CONTENTS.append(content)
        self.pool.k[:, slot] = float(_NUMBERS[content])
        self.pool.v[:, slot] = -float(_NUMBERS[content])

    def __getitem__(self, slot: int) -> tuple[int, ...]:
        number = self.pool.k[0, slot, 0, 0]
        assert (self.pool.k[:, slot] == number).all(), "K of one slot comes from two"
        assert (self.pool.v[:, slot] == -number).all(), "V comes from elsewhere than K"
        return _CONTENTS[int(number)]

    def __delitem__(self, slot: int) -> None:
        raise NotImplementedError

    def __iter__(self) -> Any:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


def forget(cache: KVCache) -> None:
    """Drop what the device holds without a lease; the tiers below are not told."""
    told, cache.slots.on_evict = cache.slots.on_evict, None
    cache.slots.evict(cache.stats().cached)
    cache.slots.on_evict = told


class Tiered:
    """An engine with the tiers that are given, and everything it said."""

    def __init__(
        self,
        num_slots: int = 64,
        *,
        host_slots: int = 0,
        folder: Path | None = None,
        disk_budget: int = 1 << 30,
        max_running: int = 4,
        disk: Disk | None = None,
    ) -> None:
        self.pool = KVPool(SHAPE, num_slots, CPU)
        self.cache = KVCache(num_slots)
        self.host = HostTier(self.pool, SHAPE, host_slots, Copies(CPU)) if host_slots else None
        self.store = (
            DiskStore(folder, disk_budget, "model", SHAPE, disk=disk or QuickDisk())
            if folder
            else None
        )
        self.disk = DiskTier(self.store, self.cache, self.pool, Pace()) if self.store else None
        below: list[Tier] = [tier for tier in (self.host, self.disk) if tier is not None]
        self.tiers = Tiers(self.cache, self.pool, below)
        self.model = ContentModel()
        self.model.content = PoolContent(self.pool)  # type: ignore[assignment]
        self.core = EngineCore(self.model, self.cache, Limits(max_running, 16), tiers=self.tiers)
        self.events: dict[str, list[TokenEvent]] = defaultdict(list)

    def submit(self, *requests: Request) -> None:
        for each in requests:
            self.take(self.core.submit(each, []))

    def take(self, events: list[TokenEvent]) -> None:
        for event in events:
            assert not (
                self.events[event.request_id] and self.events[event.request_id][-1].finish
            ), "after the end"
            self.events[event.request_id].append(event)

    def step(self) -> None:
        """As the loop of the engine process: sleep where nothing can be computed, then step."""
        self.sleep()
        self.take(self.core.step())
        self.cache.check()
        if self.host:
            self.host.cache.check()

    def sleep(self) -> None:
        patience, told = self.core.patience, self.tiers.filenos()
        if patience != 0.0 and told:
            longest = 10.0 if patience is None else min(patience, LONGEST_SLEEP)
            ready, _, _ = select.select(told, [], [], longest)
            assert ready or patience is not None, "nobody would ever wake the engine"

    def run(self) -> None:
        """Until every request has ended."""
        for _ in range(MAX_STEPS):
            if not self.core.has_work:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def settle(self) -> None:
        """Until nothing is on its way."""
        self.run()
        while not self.is_settled:
            self.step()

    @property
    def is_settled(self) -> bool:
        """Whether nothing is on its way. Host memory whose budget has shrunk may still wait for the
        end of leases, those of pins too, before it gives memory back.
        """
        awaited = list(self.tiers.below)
        if self.host is not None and self.host.patience and self.host.patience > COPY_SECONDS:
            awaited.remove(self.host)
        return not self.tiers._fetches and all(tier.patience == 0.0 for tier in awaited)

    def ask(self, *requests: Request) -> None:
        """All of them, to their end, and everything that follows from them."""
        self.submit(*requests)
        self.settle()

    def answer_to(self, question: AnyQuestion) -> Any:
        """The answer, with steps in between."""
        self.core.ask(Asked(1, question))
        return self.next_answer()

    def next_answer(self) -> Any:
        """The answer to what was asked. Other threads, which need not get a turn soon, may work on
        it.
        """
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            self.step()
            for answered in self.core.answers():
                return answered.answer
        raise AssertionError("no answer")

    def tokens(self, name: str) -> list[int]:
        return [token for event in self.events[name] for token in event.token_ids]

    def cached(self, name: str) -> tuple[int, int, int]:
        """Prompt tokens found on the device, in host memory, on the disk."""
        first = self.events[name][0]
        host, disk = (first.cached_below.get(tier, 0) for tier in ("host", "disk"))
        return (first.num_cached or 0) - host - disk, host, disk

    def close(self) -> None:
        """End it like a server that is asked to: what waits is written."""
        self.tiers.close(10.0)

    def tell_tiers_of_pins(self) -> list[Pin]:
        """Let tiers hear of pins now, whether or not there is news, and wait for the disk. Returns
        the pins in the order in which tiers keep them.
        """
        self.core.pins._news_for_tiers(0.0)
        told = self.core.pins.for_tiers(at_once=True)
        assert told is not None
        self.tiers.keep(told)
        if self.disk is not None:
            found = self.disk.match(Prefix.of("public", [1]))
            while not found.done:
                time.sleep(0.001)
                self.tiers.settle()
        return told

    def assert_drained(self) -> None:
        """Only pins hold anything, on the device and in host memory."""
        held = [(self.cache, self.core.pins.leases())]
        if self.host:
            held.append((self.host.cache, self.host._kept.leases()))
        for cache, leases in held:
            stats = cache.stats()
            assert (stats.private, stats.leases) == (0, len(leases))
            assert stats.pinned == sum(node.num_tokens for node in nodes_of(leases))
            assert stats.free + stats.cached == stats.num_slots

"""The contract of a tier: what every tier answers, and that the engine serves from one it has never
heard of.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from radixserve.cache.kvcache import KVCache
from radixserve.cache.listing import Listing
from radixserve.declared import Numbers
from radixserve.engine.core import EngineCore
from radixserve.engine.counters import CAUSES, LOSS_TOKENS, PROMPT_TOKENS
from radixserve.engine.scheduler import Limits
from radixserve.engine.tiers import Tiers
from radixserve.prefix import Branch, Prefix
from radixserve.questions import Pin, ShowTree
from radixserve.step import Slots
from radixserve.tensors.copies import read_slots
from radixserve.tensors.kv import KV, KVPool
from radixserve.tiers.contract import Dropping, Found, Load, Showing, Tier
from radixserve.tiers.counters import TIER_BYTES, TIER_TOKENS
from tests.engine.harness import request
from tests.tiers.parts import CPU, SHAPE, Tiered, forget

LONG = [i % 7 for i in range(40)]


class Shelf:
    """A third tier: keeps all K/V that was computed, by its tokens, and needs two looks to find
    any.
    """

    name: Final = "shelf"
    takes: Final = "computed"
    patience = 0.001

    def __init__(self, pool: KVPool) -> None:
        self.pool = pool
        self.kept: dict[Prefix, KV] = {}
        self.loads: list[Load] = []
        self.until = float("inf")  # how long a load is waited for
        self.declines = False  # what it has
        self.closed = False
        self.pins: list[Pin] = []

    def fileno(self) -> int | None:
        return None

    def match(self, prefix: Prefix) -> Found:
        counts = range(prefix.num_tokens, 0, -1)
        return Found(next((n for n in counts if prefix.first(n) in self.kept), 0), done=True)

    def fetch(self, prefix: Prefix, depth: int) -> Load:
        self.loads.append(Load(prefix, depth, until=self.until))
        return self.loads[-1]

    def offer(self, prefix: Prefix, slots: Slots) -> None:
        for n in range(1, prefix.num_tokens + 1):
            self.kept[prefix.first(n)] = read_slots(self.pool, slots[:n])

    def keep(self, pins: Sequence[Pin]) -> None:
        self.pins = list(pins)

    def pins_left(self) -> list[Pin]:
        return self.pins

    def drop(self, branch: Branch) -> Dropping:
        gone = [prefix for prefix in self.kept if branch.covers(prefix)]
        self.kept = {each: kv for each, kv in self.kept.items() if each not in gone}
        return Dropping(len(gone), done=True)

    def drop_unused(self, namespaces: frozenset[str] | None, seconds: float) -> Dropping:
        return Dropping(done=True)

    def show(self, question: ShowTree) -> Showing:
        return Showing(Listing([], 0, 0), done=True)

    def prefilled(self, num_tokens: int, seconds: float) -> None:
        pass

    def relent(self) -> bool:
        return False

    def settle(self) -> None:
        for load in self.loads:
            load.num_found = stop = self.match(load.prefix).num_tokens
            if stop > load.depth and not self.declines:
                k, v = self.kept[load.prefix.first(stop)]
                load.kv = k[:, load.depth :], v[:, load.depth :]
            load.done = True
        self.loads = []

    def numbers(self) -> Numbers:
        return {TIER_BYTES.key(self.name, "used"): len(self.kept)}

    def close(self, seconds: float) -> bool:
        self.closed = True
        return True


class Shelved(Tiered):
    """An engine above a shelf alone."""

    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots)
        self.shelf = Shelf(self.pool)
        self.tiers = Tiers(self.cache, self.pool, [self.shelf])
        self.core = EngineCore(self.model, self.cache, Limits(4, 16), tiers=self.tiers)

    def settle(self) -> None:
        self.run()


def test_the_engine_serves_from_a_tier_that_it_has_never_heard_of() -> None:
    engine = Shelved(128)
    engine.ask(request("cold", LONG))
    forget(engine.cache)
    engine.ask(request("warm", LONG))
    assert engine.tokens("warm") == engine.tokens("cold")
    assert engine.events["warm"][0].cached_below == {"shelf": len(LONG) - 1}
    stats = engine.core.stats()
    assert stats.value(PROMPT_TOKENS, "shelf") == len(LONG) - 1
    assert stats.value(TIER_TOKENS, "shelf", "up") == len(LONG) - 1
    assert stats.value(TIER_BYTES, "shelf", "used") > len(LONG)
    engine.close()
    assert engine.shelf.closed
    engine.assert_drained()


def test_a_load_that_is_late_is_given_up_and_told() -> None:
    engine = Shelved(128)
    engine.ask(request("cold", LONG))
    forget(engine.cache)
    engine.shelf.until = 0.0
    engine.ask(request("warm", LONG))
    assert engine.tokens("warm") == engine.tokens("cold")
    first = engine.events["warm"][0]
    assert [(load.num_tokens, load.given_up) for load in first.loads] == [(0, "late")]
    assert first.cached_below == {}
    assert engine.core.stats().value(LOSS_TOKENS, "not_loaded") == len(LONG) - 1
    engine.close()


def test_a_load_for_which_no_slots_are_free_is_given_up_and_told() -> None:
    engine = Shelved(64)
    engine.ask(request("cold", LONG))
    forget(engine.cache)
    with engine.cache.hold(Prefix.of("public", [7])) as lease:
        assert lease.grow(40)
        engine.submit(request("warm", LONG))
        for _ in range(4):
            engine.step()
    engine.run()
    first = engine.events["warm"][0]
    assert [(load.num_tokens, load.given_up) for load in first.loads] == [(0, "no_room")]
    assert engine.core.stats().value(LOSS_TOKENS, "not_loaded") == len(LONG) - 1
    engine.close()


def test_a_load_that_a_tier_declines_is_told() -> None:
    engine = Shelved(128)
    engine.ask(request("cold", LONG))
    forget(engine.cache)
    engine.shelf.declines = True
    engine.ask(request("warm", [*LONG[:30], 8, 8]))
    first = engine.events["warm"][0]
    assert [(load.num_tokens, load.given_up) for load in first.loads] == [(0, "declined")]
    lost = {cause: engine.core.stats().value(LOSS_TOKENS, cause) for cause in CAUSES}
    assert lost["not_loaded"] == 30
    engine.close()


@pytest.mark.parametrize("name", ["host", "disk"])
def test_every_tier_tells_how_much_of_a_prefix_it_keeps(name: str, tmp_path: Path) -> None:
    host_slots, folder = (200, None) if name == "host" else (0, tmp_path / "s")
    engine = Tiered(64, host_slots=host_slots, folder=folder)
    engine.ask(request("cold", LONG))
    engine.cache.slots.evict(64)
    engine.settle()
    (tier,) = engine.tiers.below
    assert tier.name == name
    assert [_matched(tier, tokens) for tokens in (LONG, LONG[:5], [*LONG[:3], 9], [9])] == [
        len(LONG),
        5,
        3,
        0,
    ]
    engine.close()


def _matched(tier: Tier, tokens: list[int]) -> int:
    found, told = tier.match(Prefix.of("public", tokens)), tier.fileno()
    while not found.done:
        assert told is not None, "who answers later says when"
        assert select.select([told], [], [], 10.0)[0], "the answer never comes"
        tier.settle()
    return found.num_tokens


def test_without_tiers_nothing_is_asked() -> None:
    none = Tiers(KVCache(64), KVPool(SHAPE, 64, CPU))
    none.settle()
    assert (none.patience, none.filenos(), none.relent()) == (0.0, [], False)

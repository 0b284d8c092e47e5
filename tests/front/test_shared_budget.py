"""One budget of several engines: whatever fails, what they have never adds up to more."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from radixserve.cache.counters import EVICTED_TOKENS, KV_BYTES, OLDEST_SECONDS
from radixserve.config import Settings
from radixserve.errors import ConfigError, Unavailable
from radixserve.front.live_settings import LiveSettings
from radixserve.front.shared_budget import SharedBudget
from radixserve.questions import Configured
from radixserve.step import EngineStats
from tests.fakes import INFO, FakeEngine

SLOT = INFO.slot_bytes
TOTAL, LEAST = 1000 * SLOT, 100 * SLOT
LIVE = Settings(kv_budget=LEAST, kv_budget_max=TOTAL)
FACTS = msgspec.structs.replace(
    INFO, num_slots=100, pool_slots=1000, max_request_tokens=101, device="cpu"
)
NAMES = st.sampled_from("ab")
AGES = st.sampled_from((0.0, 2.0, 60.0))


class Engine(FakeEngine):
    """An engine that has a pool, and obeys late or never if it is told so."""

    def __init__(self) -> None:
        super().__init__(FACTS)
        self.live_settings = LiveSettings(LIVE)
        self.live_settings.shares_budget = True
        self.live_settings.take_engine(FACTS)
        self.budget, self.leased = LEAST, 0
        self.evicted, self.oldest, self.used = 0, 0.0, 0
        self.behaves = "well"
        self.later: dict[str, Any] | None = None
        self.report()

    @property
    def holds(self) -> int:
        """Bytes of memory that it has: what is leased stays when the budget shrinks."""
        return max(self.budget, self.leased)

    def report(self) -> None:
        self.used = min(max(self.used, self.leased), self.holds)
        self.stats = EngineStats(
            numbers={
                KV_BYTES.key("budget"): self.holds,
                KV_BYTES.key("free"): self.holds - self.used,
                KV_BYTES.key("used"): self.used,
                KV_BYTES.key("evictable"): self.used - self.leased,
                EVICTED_TOKENS.key(): self.evicted,
                OLDEST_SECONDS.key(): self.oldest,
            }
        )

    async def configure(self, changes: dict[str, Any], who: str, why: str) -> Configured:
        if self.behaves == "late":
            self.later = changes
        if self.behaves != "well":
            raise Unavailable("it does not answer")
        return self.obey(changes)

    def obey(self, changes: dict[str, Any]) -> Configured:
        self.live_settings.take(self.live_settings.checked(changes), "auto")
        self.budget, before = changes["kv_budget"], self.used
        self.used = min(before, self.holds)
        self.evicted += (gone := (before - self.used) // SLOT)
        self.report()
        excess = {"device": self.holds - self.budget} if self.holds > self.budget else {}
        return Configured(evicted_tokens={"device": gone}, excess_bytes=excess)


class Machine(RuleBasedStateMachine):
    """Two engines whose traffic, and faults, come in any order."""

    @initialize()
    def begin(self) -> None:
        self.engines = {name: Engine() for name in "ab"}
        self.shared = SharedBudget(TOTAL, self.engines, lambda name: None)
        asyncio.run(self.shared.check())

    @rule(name=NAMES, share=st.floats(0, 1), ages=st.tuples(AGES, AGES))
    def works(self, name: str, share: float, ages: tuple[float, float]) -> None:
        """It leases a share of its budget, and evicts what had no lease; the other one leased as
        much before.
        """
        for engine, oldest in zip(self.engines.values(), ages, strict=True):
            engine.leased, engine.used = int(share * engine.budget), engine.budget
            engine.evicted += 10 * (engine is self.engines[name])
            engine.oldest = oldest
            engine.report()
        self.check()

    @rule(name=NAMES)
    def rests(self, name: str) -> None:
        self.engines[name].leased = 0
        self.engines[name].report()

    @rule(name=NAMES, behaves=st.sampled_from(("well", "well", "badly", "late")))
    def behaves(self, name: str, behaves: str) -> None:
        engine = self.engines[name]
        engine.behaves = behaves
        if engine.later is not None:
            engine.obey(engine.later)
            engine.later = None

    @rule(name=NAMES)
    def dies_and_comes_back(self, name: str) -> None:
        """The next engine begins with the least budget, and is told that of now."""
        engine = self.engines[name]
        engine.leased = engine.used = engine.evicted = 0
        told = engine.live_settings.for_engine()
        engine.budget = LEAST if told is None or told.kv_budget is None else told.kv_budget
        engine.report()

    @rule(name=NAMES, reason=st.sampled_from((None, "restarting")))
    def is_away(self, name: str, reason: str | None) -> None:
        self.engines[name].unready_reason = reason

    @rule()
    def check(self) -> None:
        try:
            asyncio.run(self.shared.check())
        except Unavailable:
            assert any(each.behaves != "well" for each in self.engines.values())

    @invariant()
    def no_more_than_the_budget_is_given(self) -> None:
        parts = self.shared.parts
        assert sum(parts.values()) <= TOTAL
        assert all(part >= LEAST for part in parts.values())
        assert sum(each.holds for each in self.engines.values()) <= TOTAL


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def pair() -> tuple[SharedBudget, Engine, Engine, list[str]]:
    a, b, moved = Engine(), Engine(), list[str]()
    return SharedBudget(TOTAL, {"a": a, "b": b}, moved.append), a, b, moved


async def test_memory_goes_to_the_model_that_evicts_what_was_used_lately() -> None:
    shared, a, b, moved = pair()
    await shared.check()
    assert (a.budget, b.budget) == (TOTAL // 2, TOTAL // 2)
    a.used = b.used = TOTAL // 2
    a.oldest, b.oldest = 60.0, 2.0
    for _ in range(12):
        b.evicted += 100
        for each in (a, b):
            each.report()
        await shared.check()
        b.used = b.budget
    assert (a.budget, b.budget) == (LEAST, TOTAL - LEAST)
    assert moved[:2] == ["a", "b"]
    last = shared.moves[0]
    assert (last.giver, last.taker) == ("a", "b")
    assert last.why == "b evicts K/V that was used 2 s ago, a has K/V not used for 60 s"
    assert shared.parts == {"a": LEAST, "b": TOTAL - LEAST}


async def test_what_requests_hold_is_given_when_they_end() -> None:
    shared, a, b, _ = pair()
    await shared.check()
    a.used = b.used = TOTAL // 2
    a.leased = 450 * SLOT
    a.oldest, b.oldest = 60.0, 2.0
    a.report()
    b.evicted += 100
    b.report()
    await shared.check()
    assert (a.budget, a.holds, b.budget) == (375 * SLOT, 450 * SLOT, 550 * SLOT)
    a.leased = 0
    for each in (a, b):
        each.evicted += each is b
        each.report()
    await shared.check()
    assert b.budget == 625 * SLOT
    assert shared.moves[0].giver is None


async def test_the_k_v_of_a_model_that_rests_grows_older() -> None:
    now, a, b = 0.0, Engine(), Engine()
    shared = SharedBudget(TOTAL, {"a": a, "b": b}, lambda name: None, lambda: now)
    await shared.check()
    a.used = b.used = TOTAL // 2
    a.oldest, b.oldest = 1.0, 2.0
    a.report()
    for now, part in ((1.0, 500), (2.0, 500), (5.0, 375)):  # noqa: B007  # the clock reads it
        a.stats = msgspec.structs.replace(a.stats)  # the client makes them anew at each look
        b.evicted += 100
        b.report()
        await shared.check()
        assert a.budget == part * SLOT


def test_a_request_may_be_as_long_as_the_least_part_allows() -> None:
    engine = Engine()
    for budget in (LEAST, TOTAL):
        engine.obey({"kv_budget": budget})
        now = engine.live_settings.info_now()
        assert (now.num_slots, now.max_request_tokens) == (budget // SLOT, 101)


async def test_memory_of_a_gpu_is_refused() -> None:
    shared, _, b, _ = pair()
    shared.refuse_devices()
    b.info = msgspec.structs.replace(FACTS, device="cuda")
    with pytest.raises(ConfigError, match="b: several models share memory only with device=cpu"):
        shared.refuse_devices()

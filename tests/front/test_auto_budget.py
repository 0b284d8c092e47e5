"""The budget that moves by itself, with an engine in a real process and a machine whose memory is
made up.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import msgspec
import pytest

from radixserve.cache.counters import GHOST_HIT_TOKENS
from radixserve.config import Settings
from radixserve.engine.counters import PROMPT_TOKENS
from radixserve.errors import Unavailable
from radixserve.front import auto_budget
from radixserve.front.auto_budget import AutoBudget
from radixserve.front.budget_rule import CHECKS, SETTLE
from radixserve.front.live_settings import LiveSettings
from radixserve.machine import Machine
from radixserve.questions import Configure
from radixserve.request import Request, Sampling
from radixserve.step import EngineStats
from radixserve.tiers.counters import TIER_BYTES, TIER_GHOST_HIT_TOKENS, TIER_TOKENS
from tests.fakes import INFO, FakeEngine
from tests.front.test_client import collect, engine_of
from tests.tiny import tiny_model

SLOT = 16  # bytes, of the fake model
GIB = 1 << 30


class MadeUp(Machine):
    """A machine of 16 GiB."""

    free = 8 * GIB

    def free_bytes(self) -> int:
        return self.free

    def memory_limit(self) -> int:
        return 16 * GIB


def prompt(number: int, turn: int) -> Request:
    """One of 300 tokens, in no other's beginning."""
    sampling = Sampling(max_tokens=1, seed=1, temperature=0.0)
    return Request(id=f"p{number}.{turn}", prompt_ids=[number + 1] * 300, sampling=sampling)


@pytest.mark.slow
async def test_it_grows_while_prompts_come_again_too_late_and_shrinks_when_memory_is_short(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"vocab_size": 200, "max_position_embeddings": 2048})
    )
    engine = engine_of(
        str(tmp_path), kv_budget=1000 * SLOT, kv_budget_max=4000 * SLOT, kv_budget_min=900 * SLOT
    )
    changed: list[str] = []
    machine = MadeUp()
    caplog.set_level(logging.INFO)
    await engine.start()
    try:
        assert engine.info is not None
        assert (engine.info.num_slots, engine.info.pool_slots) == (1000, 4000)
        auto = AutoBudget(engine, engine.live_settings.settings, changed.append, machine)
        for turn in range(2 * CHECKS):
            for number in range(5):  # 1500 tokens, more than the budget holds
                await collect(engine, prompt(number, turn))
            await auto.check()
        assert changed
        assert engine.info.num_slots > 1000
        assert engine.stats.value(GHOST_HIT_TOKENS, "2x") > 0
        grown = engine.info.num_slots
        machine.free = 1 << 20
        await auto.check()
        assert engine.info.num_slots == 900 < grown
        shown = engine.live_settings.shown()["kv_budget"]
        assert (shown.value, shown.at_start, shown.max) == (900 * SLOT, 1000 * SLOT, 4000 * SLOT)
    finally:
        await engine.stop()
    told = [each for each in caplog.messages if each.startswith("auto changed kv_budget from")]
    assert len(told) == len(changed)
    assert "times the memory would have made hits of" in told[0]
    assert "1 MiB of memory are free, less than the reserve of 819 MiB" in told[-1]


async def test_a_check_that_raises_is_not_the_last_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, machine = FakeEngine(), MadeUp()
    auto = AutoBudget(engine, Settings(kv_budget_max=1 << 20), lambda _: None, machine)
    asked = asyncio.Event()

    def free_bytes() -> int:
        if "a check of them failed" in caplog.text:
            asked.set()
        raise ValueError("no number")

    monkeypatch.setattr(machine, "free_bytes", free_bytes)
    monkeypatch.setattr(auto_budget, "CHECK_SECONDS", 0.0)
    running = asyncio.create_task(auto.run())
    async with asyncio.timeout(10):
        await asked.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert "ValueError: no number" in caplog.text


async def test_without_an_engine_that_works_or_an_answer_nothing_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine, machine, changed = FakeEngine(), MadeUp(), list[str]()
    auto = AutoBudget(engine, Settings(kv_budget_max=1 << 20), changed.append, machine)
    machine.free = 0
    engine.unready_reason = "restarting"
    await auto.check()
    assert not engine.asked
    engine.unready_reason = None
    engine.answers[Configure] = Unavailable("The engine did not answer in time.")
    await auto.check()
    assert not changed
    assert "kv_budget: no change for now" in caplog.text
    assert engine.live_settings.shown()["kv_budget"].value == INFO.num_slots * INFO.slot_bytes


class TwoBudgets:
    """A fake engine with both budgets at 1 MiB, which may move between 256 KiB and 4 MiB."""

    def __init__(self, device: str = "cpu") -> None:
        settings = Settings(
            kv_budget=1 << 20,
            kv_budget_max=4 << 20,
            host_budget=1 << 20,
            host_budget_max=4 << 20,
            tier_dtype="float8",
        )
        slot = 1024
        info = msgspec.structs.replace(
            INFO,
            device=device,
            slot_bytes=slot,
            num_slots=1024,
            pool_slots=4096,
            host_bytes=4 << 20,
        )
        self.engine, self.machine = FakeEngine(info), MadeUp()
        self.engine.live_settings = LiveSettings(settings)
        self.engine.live_settings.take_engine(info)
        self.auto = AutoBudget(self.engine, settings, lambda _: None, self.machine)

    async def check(self, copied: int = 0, missed: int = 0) -> list[tuple[int | None, int | None]]:
        """Ten thousand more prompt tokens, then a check; what the engine was told of both."""
        numbers, self.engine.asked = self.engine.stats.numbers, []
        more = {
            PROMPT_TOKENS.key("computed"): 10_000,
            TIER_TOKENS.key("host", "up"): copied,
            TIER_GHOST_HIT_TOKENS.key("host", "1.5x"): missed,
        }
        both = {key: numbers.get(key, 0) + count for key, count in more.items()}
        self.engine.stats = EngineStats(numbers=both)
        await self.auto.check()
        told = [each for each in self.engine.asked if isinstance(each, Configure)]
        return [(each.kv_budget, each.host_budget) for each in told]


async def test_host_memory_gives_first_and_the_device_when_that_did_not_suffice() -> None:
    server = TwoBudgets()
    server.machine.free = 0
    assert await server.check() == [(None, 256 << 10)]  # all that it may give
    assert [await server.check() for _ in range(SETTLE - 1)] == [[]] * (SETTLE - 1)
    assert await server.check() == [(256 << 10, None)]


@pytest.mark.parametrize(
    ("copied", "missed", "told"),
    [(5000, 0, (1280 << 10, 768 << 10)), (5000, 500, (768 << 10, 1280 << 10))],
)
async def test_memory_moves_between_both_where_they_share_it(
    copied: int, missed: int, told: tuple[int, int]
) -> None:
    server, on_cuda = TwoBudgets(), TwoBudgets("cuda")
    server.machine.free = on_cuda.machine.free = 1 << 30  # no room for a growth
    checks = [await server.check(copied, missed) for _ in range(CHECKS + 1)]
    assert checks == [[]] * CHECKS + [[told]]
    shown = server.engine.live_settings.shown()["host_budget"]
    assert shown.changed_by == "auto"
    assert "of the prompt tokens" in shown.why
    assert not any([await on_cuda.check(copied, missed) for _ in range(CHECKS + 1)])


@pytest.mark.slow
async def test_memory_moves_to_the_device_while_prompts_are_copied_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a model that computes, and the real copies between both."""
    tiny_model("llama_grouped").save_pretrained(tmp_path)
    slot = 512
    bounds = {"kv_budget_max": 4000 * slot, "host_budget_max": 4000 * slot}
    engine = engine_of(
        str(tmp_path), fake_model=False, kv_budget=1000 * slot, host_budget=2000 * slot, **bounds
    )
    caplog.set_level(logging.INFO)
    machine = MadeUp()
    machine.free = 1 << 30
    await engine.start()
    try:
        auto = AutoBudget(engine, engine.live_settings.settings, lambda _: None, machine)
        for turn in range(2 * CHECKS):
            for number in range(5):  # 1500 tokens
                await collect(engine, prompt(number, turn))
            await auto.check()
        shown = engine.live_settings.shown()
        device, host = int(shown["kv_budget"].value), int(shown["host_budget"].value)
        assert device > 1000 * slot
        assert device + host == 3000 * slot
        assert "were copied up from host memory" in shown["kv_budget"].why
        assert engine.stats.value(TIER_TOKENS, "host", "up") > 0
        assert engine.stats.value(TIER_BYTES, "host", "budget") == host // slot * slot
    finally:
        await engine.stop()
    assert "auto changed kv_budget from" in caplog.text

"""The budget that moves by itself, with an engine in a real process and a machine whose memory is
made up.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest

from radixserve.cache.counters import GHOST_HIT_TOKENS
from radixserve.errors import Unavailable
from radixserve.front import auto_budget
from radixserve.front.auto_budget import AutoBudget
from radixserve.front.budget_rule import CHECKS
from radixserve.machine import Machine
from radixserve.questions import Configure
from radixserve.request import Request, Sampling
from tests.fakes import INFO, FakeEngine
from tests.front.test_client import collect, engine_of

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
    auto = AutoBudget(engine, engine.live_settings.settings, lambda _: None, machine)
    asked = asyncio.Event()

    def free_bytes() -> int:
        if "a check of it failed" in caplog.text:
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
    auto = AutoBudget(engine, engine.live_settings.settings, changed.append, machine)
    machine.free = 0
    engine.unready_reason = "restarting"
    await auto.check()
    assert not engine.asked
    engine.unready_reason = None
    engine.answers[Configure] = Unavailable("The engine did not answer in time.")
    await auto.check()
    assert not changed
    assert "kv_budget stays as it is" in caplog.text
    assert engine.live_settings.shown()["kv_budget"].value == INFO.num_slots * INFO.slot_bytes

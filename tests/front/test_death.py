"""The engine process dies or hangs, and no stream notices: a real child process with traps
(`tests.front.trapped`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from radixserve.cache.counters import KV_BYTES
from radixserve.engine.counters import GENERATED_TOKENS, RUNNING, WAITING
from radixserve.engine.process import EXIT_DEVICE_LOST
from radixserve.errors import StartupError, Unavailable
from radixserve.front import child, client, supervisor, watchdog
from radixserve.front.client import ProcessEngine
from radixserve.front.stream import Stream
from radixserve.prefix import pack
from radixserve.questions import (
    Drop,
    Dropped,
    ListPins,
    Pin,
    Summarize,
    Summary,
    Unpin,
    Unpinned,
)
from radixserve.request import Request, Sampling
from radixserve.step import EngineStats, TokenEvent
from tests.front.test_client import SETTINGS, submit, tokens, until
from tests.front.trapped import Trap, count

pytestmark = pytest.mark.slow

LONG = 400  # tokens; about a second


def request(
    name: str, max_tokens: int = LONG, *, trap: Trap | None = None, **sampling: Any
) -> Request:
    """Its answer goes on counting from 41; with `trap` that is in its prompt."""
    settled: dict[str, Any] = {"max_tokens": max_tokens, "seed": 1, "temperature": 0.0} | sampling
    prompt = [40] * 20 if trap is None else [*[40] * 10, trap, *[40] * 9]
    return Request(id=name, prompt_ids=prompt, sampling=Sampling(**settled))


def answer(num_tokens: int) -> list[int]:
    return [33 + (8 + i) % 64 for i in range(num_tokens)]


class Trapped(ProcessEngine):
    """The engine with traps, and what it told the metrics."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.folder = folder
        self.causes: list[str] = []
        self.resumed = 0
        settings = msgspec.structs.replace(SETTINGS, **changes)
        super().__init__(
            settings, str(folder), lambda stats: None, self._count_restart, self._count_resumed
        )

    @property
    def restarts(self) -> int:
        return len(self.causes)

    def _count_restart(self, cause: str) -> None:
        self.causes.append(cause)

    def _count_resumed(self) -> None:
        self.resumed += 1

    def kill(self) -> None:
        assert self.pid is not None
        os.kill(self.pid, signal.SIGKILL)

    def stop_process(self) -> None:
        """It still exists, and does nothing any more."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGSTOP)

    async def kill_and_see(self) -> None:
        """Return when the front knows."""
        before = self.restarts
        self.kill()
        await until(lambda: self.restarts > before)

    async def until_held(self, times: int = 1) -> None:
        """Until a step hangs in Trap.HOLD, for the n-th time."""
        await until(lambda: count(self.folder, "held") == times)


Start = Callable[..., Awaitable[Trapped]]


@pytest.fixture
async def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    (tmp_path / "config.json").write_text('{"vocab_size": 200, "max_position_embeddings": 2048}')
    (tmp_path / "hold").touch()
    monkeypatch.setenv("TRAPS_FOLDER", str(tmp_path))
    monkeypatch.setattr(
        child, "_COMMAND", (sys.executable, str(Path(__file__).with_name("trapped.py")))
    )
    monkeypatch.setattr(supervisor, "_RESTART_SECONDS", (0.0, 0.05))
    for module in (child, watchdog):
        monkeypatch.setattr(module, "TICK_SECONDS", 0.05)
    engines: list[Trapped] = []

    async def started(**changes: object) -> Trapped:
        engine = Trapped(tmp_path, **changes)
        engines.append(engine)
        await engine.start()
        return engine

    yield started
    for engine in engines:
        await engine.stop()
        assert engine.pid is None


def let_go(engine: Trapped) -> None:
    (engine.folder / "hold").unlink()


async def rest(stream: Stream) -> list[TokenEvent]:
    async with contextlib.aclosing(stream):
        return [event async for event in stream]


async def whole(engine: Trapped, asked: Request) -> list[TokenEvent]:
    return await rest(submit(engine, asked))


async def test_streams_go_on_at_the_next_token_however_often_the_engine_dies(start: Start) -> None:
    engine = await start()
    streams = [submit(engine, request(f"r{i}", logprobs=2)) for i in range(3)]
    events = [[await anext(stream)] for stream in streams]
    pids = {engine.pid}
    for _ in range(3):
        await engine.kill_and_see()
        for stream, so_far in zip(streams, events, strict=True):
            num_tokens = len(tokens(so_far))
            while len(tokens(so_far)) < num_tokens + 20:
                so_far.append(await anext(stream))
        pids.add(engine.pid)
    for stream, so_far in zip(streams, events, strict=True):
        so_far += await rest(stream)
        assert tokens(so_far) == answer(LONG)
        assert [each.token_id for event in so_far for each in event.logprobs or []] == answer(LONG)
        assert so_far[-1].finish == "length"
        assert [event for event in so_far if event.num_cached is not None] == so_far[:1]
        assert [event for event in so_far if event.queue_seconds is not None] == so_far[:1]
    assert (engine.restarts, engine.resumed, len(pids)) == (3, 9, 4)
    assert [len(stream.resumed_at) for stream in streams] == [3, 3, 3]


async def test_tokens_that_the_reader_has_not_fetched_survive_a_death(start: Start) -> None:
    engine = await start()
    stream = submit(engine, request("slow reader"))
    await until(lambda: engine.stats.value(GENERATED_TOKENS) > 20)
    await engine.kill_and_see()
    await until(lambda: engine.stats.value(GENERATED_TOKENS) > 20)
    (event, *later) = await rest(stream)
    assert tokens([event, *later]) == answer(LONG)
    assert event.num_cached == 0
    assert len(event.token_ids) > 40


async def test_tokens_before_a_death_count_for_the_limits_of_a_request(start: Start) -> None:
    engine = await start()
    limits: Any = {"max_tokens": 2 * LONG, "stop_token_ids": (answer(20)[-1],), "min_tokens": LONG}
    undisturbed = await whole(engine, request("undisturbed", **limits))
    assert LONG < len(tokens(undisturbed)) < LONG + 64
    stream = submit(engine, request("disturbed", **limits))
    events = [await anext(stream)]
    await engine.kill_and_see()
    events += await rest(stream)
    assert tokens(events) == tokens(undisturbed)
    assert (events[-1].finish, events[-1].stop_token_id) == ("stop", answer(20)[-1])


async def test_a_request_that_dies_before_its_first_token_is_like_a_fresh_one(start: Start) -> None:
    engine = await start()
    stream = submit(engine, request("held", 5, trap=Trap.HOLD, prompt_logprobs=1))
    await engine.until_held()
    await engine.kill_and_see()
    let_go(engine)
    events = await rest(stream)
    assert tokens(events) == answer(5)
    assert events[0].num_cached == 0
    assert events[0].queue_seconds is not None
    assert len(events[0].prompt_logprobs or []) == 19


async def test_prompt_logprobs_that_were_told_are_not_computed_again(start: Start) -> None:
    engine = await start()
    stream = submit(engine, request("echo", prompt_logprobs=1))
    events = [await anext(stream)]
    await engine.kill_and_see()
    events += await rest(stream)
    assert [
        len(event.prompt_logprobs) for event in events if event.prompt_logprobs is not None
    ] == [19]
    assert tokens(events) == answer(LONG)


async def test_requests_in_the_queue_of_a_dead_engine_are_served_by_the_next(start: Start) -> None:
    engine = await start(max_running=1)
    streams = [
        submit(engine, request("held", 5, trap=Trap.HOLD)),
        *(submit(engine, request(f"q{i}", 5)) for i in range(3)),
    ]
    await engine.until_held()
    await engine.kill_and_see()
    let_go(engine)
    for stream in streams:
        assert tokens(await rest(stream)) == answer(5)
    assert engine.resumed == 4


async def test_a_poisonous_request_ends_after_killing_twice_alone_and_nobody_else_notices(
    start: Start,
) -> None:
    engine = await start()
    going = submit(engine, request("going"))
    first = await anext(going)
    poison = submit(engine, request("poison", trap=Trap.KILL))
    beside = [submit(engine, request(f"beside{i}", 20)) for i in range(3)]
    last = (await rest(poison))[-1]
    assert last.finish == "error"
    assert "twice" in str(last.error)
    kills = count(engine.folder, "killed")
    assert kills in (2, 3)  # the first time perhaps with one beside it that had no token yet
    for stream in beside:
        assert tokens(await rest(stream)) == answer(20)
    assert tokens([first, *await rest(going)]) == answer(LONG)
    assert count(engine.folder, "killed") == kills
    assert engine.unready_reason is None


async def test_three_poisonous_requests_at_once_end_and_the_innocent_one_among_them_does_not(
    start: Start,
) -> None:
    engine = await start()
    names = ["p0", "p1", "innocent", "p2"]
    streams = [
        submit(engine, request(name, 5, trap=Trap.KILL if name[0] == "p" else None))
        for name in names
    ]
    ends = [(await rest(stream))[-1].finish for stream in streams]
    assert ends == ["error", "error", "length", "error"]
    assert count(engine.folder, "killed") == 7  # once together, then each of the three twice


async def test_an_engine_that_lost_its_device_ends_and_the_next_goes_on_with_everybody(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await start()
    going = submit(engine, request("going"))
    first = await anext(going)
    assert tokens(await whole(engine, request("asserts once", 5, trap=Trap.LOSE))) == answer(5)
    assert tokens([first, *await rest(going)]) == answer(LONG)
    assert count(engine.folder, "lost") == 1, "no other step was tried"
    assert engine.restarts == 1
    assert f"ended with exit code {EXIT_DEVICE_LOST}" in caplog.text


async def test_two_kills_from_outside_do_not_end_a_request_that_was_not_alone_at_both(
    start: Start,
) -> None:
    engine = await start()
    streams = [submit(engine, request(name, 5, trap=Trap.HOLD)) for name in ("hit", "hit too")]
    await engine.until_held()
    await engine.kill_and_see()
    await engine.until_held(2)
    await engine.kill_and_see()  # "hit" is alone
    let_go(engine)
    for stream in streams:
        assert tokens(await rest(stream)) == answer(5)


async def test_requests_are_taken_while_there_is_no_engine_and_wait(start: Start) -> None:
    engine = await start(max_queue=2)
    await engine.kill_and_see()
    assert engine.unready_reason == "restarting"
    assert engine.refusal_reason is None
    waiting = [submit(engine, request(f"w{i}", 5)) for i in range(2)]
    assert engine.stats == EngineStats(numbers={WAITING.key(): 2})
    with pytest.raises(Unavailable) as refusal:
        submit(engine, request("one too many"))
    assert refusal.value.code == "server_is_overloaded"
    for stream in waiting:
        assert tokens(await rest(stream)) == answer(5)
    assert engine.unready_reason is None
    assert engine.resumed == 0


async def test_a_death_before_the_engine_is_ready_costs_nobody_anything(start: Start) -> None:
    engine = await start()
    stream = submit(engine, request("held", 5, trap=Trap.HOLD))
    await engine.until_held()
    await engine.kill_and_see()
    for _ in range(2):
        await until(lambda: engine.pid is not None)
        assert engine.unready_reason == "restarting"
        await engine.kill_and_see()
    let_go(engine)
    assert tokens(await rest(stream)) == answer(5)
    assert engine.resumed == 1


async def test_an_engine_that_is_stopped_is_killed_and_streams_go_on(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await start(hang_seconds=1.0)
    streams = [submit(engine, request(f"r{i}")) for i in range(3)]
    firsts = [await anext(stream) for stream in streams]
    engine.stop_process()
    await until(lambda: engine.unready_reason == "stalled")
    assert engine.refusal_reason is None
    streams.append(submit(engine, request("comes meanwhile")))
    for stream, so_far in zip(streams, [*([each] for each in firsts), []], strict=True):
        assert tokens([*so_far, *await rest(stream)]) == answer(LONG)
    assert engine.causes == ["hang"]
    assert engine.unready_reason is None
    assert "the engine process did nothing for 1 s while it had work" in caplog.text


async def test_a_step_that_never_ends_is_ended_where_steps_are_short(start: Start) -> None:
    engine = await start(hang_seconds=1.0)
    going = submit(engine, request("going"))
    first = await anext(going)
    hangs = submit(engine, request("hangs", 5, trap=Trap.HANG))
    last = (await rest(hangs))[-1]
    assert (last.finish, "hung twice" in str(last.error)) == ("error", True)
    assert tokens([first, *await rest(going)]) == answer(LONG)
    assert set(engine.causes) == {"hang"}
    assert engine.unready_reason is None


async def test_an_engine_that_is_stopped_while_it_loads_again_is_replaced(start: Start) -> None:
    engine = await start(hang_seconds=1.0)
    stream = submit(engine, request("waits"))
    first = await anext(stream)
    await engine.kill_and_see()
    await until(lambda: engine.pid is not None)
    engine.stop_process()
    assert tokens([first, *await rest(stream)]) == answer(LONG)
    assert engine.causes == ["crash", "hang"]


async def test_a_first_start_that_hangs_is_one_sentence(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAPS_HANG_AT_START", "1")
    with pytest.raises(StartupError, match=r"did nothing for 1 s while it started.*hang_seconds"):
        await start(hang_seconds=1.0)


async def test_an_engine_without_work_may_sleep(start: Start) -> None:
    engine = await start(hang_seconds=1.0)
    assert tokens(await whole(engine, request("before", 5))) == answer(5)
    await asyncio.sleep(1.5)
    assert engine.causes == []
    assert engine.unready_reason is None
    assert tokens(await whole(engine, request("after", 5))) == answer(5)


@pytest.mark.parametrize("drain", [True, False])
async def test_the_end_of_the_server_waits_for_a_stopped_engine_no_longer_than_for_any(
    start: Start, drain: bool
) -> None:
    engine = await start()
    stream = submit(engine, request("running"))
    await anext(stream)
    engine.stop_process()
    began = time.monotonic()
    if drain:
        await engine.drain(0.5)
    await engine.stop()
    assert time.monotonic() - began < 5 + 0.5 * drain
    assert (await rest(stream))[-1].finish == "abort"


async def test_when_three_starts_in_a_row_fail_all_end_and_none_is_taken_until_one_succeeds(
    start: Start,
) -> None:
    engine = await start()
    started, idle = submit(engine, request("started")), submit(engine, request("never read"))
    first = await anext(started)
    config = engine.folder / "config.json"
    config.rename(config.with_suffix(".away"))
    await engine.kill_and_see()
    waiting = submit(engine, request("waiting"))
    assert engine.restarts == 1
    for stream in (started, idle, waiting):
        last = (await rest(stream))[-1]
        assert (last.finish, last.error) == ("abort", "the engine process does not start")
    assert first.finish is None
    assert engine.restarts == 4
    assert engine.unready_reason == engine.refusal_reason == "failing"
    with pytest.raises(Unavailable, match="failing"):
        submit(engine, request("too early"))
    assert await engine.ask(Drop()) == Dropped(), "the next engine makes it"
    config.with_suffix(".away").rename(config)
    await until(lambda: engine.unready_reason is None)
    assert tokens(await whole(engine, request("after", 5))) == answer(5)


async def test_whoever_leaves_while_there_is_no_engine_vanishes(start: Start) -> None:
    engine = await start()
    streams = [submit(engine, request(name)) for name in ("leaves", "leaves too", "stays")]
    firsts = [await anext(stream) for stream in streams]
    await engine.kill_and_see()
    await streams[0].aclose()
    await streams[1].aclose()
    assert tokens([firsts[2], *await rest(streams[2])]) == answer(LONG)
    assert engine.resumed == 1
    await until(
        lambda: (
            engine.stats.value(RUNNING)
            == engine.stats.value(WAITING)
            == engine.stats.value(KV_BYTES, "leased")
            == 0
        )
    )
    assert engine.stats.value(GENERATED_TOKENS) < LONG


async def test_an_abort_that_a_dying_engine_did_not_carry_out_is_not_forgotten(
    start: Start,
) -> None:
    engine = await start()
    held, other = (
        submit(engine, request("held", trap=Trap.HOLD)),
        submit(engine, request("other", 5)),
    )
    await engine.until_held()
    await held.aclose()
    await engine.kill_and_see()
    assert tokens(await rest(other)) == answer(5)
    assert engine.resumed == 1
    assert count(engine.folder, "held") == 1


async def test_a_drain_waits_for_requests_that_a_death_interrupts(start: Start) -> None:
    engine = await start()
    running = asyncio.create_task(whole(engine, request("running")))
    await until(lambda: engine.stats.value(RUNNING) == 1)
    await engine.kill_and_see()
    draining = asyncio.create_task(engine.drain(60.0))
    await asyncio.sleep(0)
    assert engine.unready_reason == engine.refusal_reason == "draining"
    await until(lambda: engine.stats.value(RUNNING) == 1)
    await engine.kill_and_see()
    await draining
    assert tokens(await running) == answer(LONG)


@pytest.mark.parametrize(
    "end", [lambda engine: engine.drain(0.0), ProcessEngine.stop], ids=["drain", "stop"]
)
async def test_what_is_live_while_there_is_no_engine_ends_with_the_server(
    start: Start, end: Callable[[ProcessEngine], Awaitable[None]]
) -> None:
    engine = await start()
    streams = [submit(engine, request(f"r{i}")) for i in range(2)]
    await anext(streams[0])
    await engine.kill_and_see()
    await end(engine)
    for stream in streams:
        assert [event.finish for event in await rest(stream)] == ["abort"]


async def test_the_first_start_is_not_tried_again(start: Start, tmp_path: Path) -> None:
    (tmp_path / "config.json").unlink()
    with pytest.raises(StartupError, match="no model configuration"):
        await start()


async def test_a_question_about_the_cache_ends_with_the_engine_and_a_flush_is_asked_again(
    start: Start,
) -> None:
    engine = await start()
    assert isinstance(await engine.ask(Summarize()), Summary)
    engine.stop_process()
    shown, flushed = (asyncio.ensure_future(engine.ask(each)) for each in (Summarize(), Drop()))
    await asyncio.sleep(0)
    engine.kill()
    with pytest.raises(Unavailable):
        await shown
    assert await flushed == Dropped()


async def test_pins_are_replayed_to_the_next_engine_until_they_end(start: Start) -> None:
    engine = await start()
    prompt = request("a", max_tokens=2)
    await whole(engine, prompt)
    for name, ids in (("kept", prompt.prompt_ids), ("ended", [1, 2]), ("dropped", [3, 4])):
        pin = Pin(id=name, seconds=500.0, renews=True, namespace="public", packed=pack(ids))
        assert (await engine.ask(pin)).status == "accepted"
    assert await engine.ask(Unpin(id="ended")) == Unpinned(0)
    await engine.ask(Drop(prefix=[3]))
    assert [each.tokens for each in (await engine.ask(ListPins())).pins] == [20]
    await engine.kill_and_see()
    await until(lambda: engine.unready_reason is None)
    (again,) = (await engine.ask(ListPins())).pins
    assert (again.id, again.tokens, again.wanted, again.ttl) == ("kept", 0, 20, 500.0)
    assert again.seconds_left < 500.0
    await whole(engine, request("b", max_tokens=2))
    assert [each.tokens for each in (await engine.ask(ListPins())).pins] == [20]


async def test_a_changed_budget_holds_for_the_next_engine_and_harms_no_request(
    start: Start,
) -> None:
    engine = await start()
    assert engine.info is not None
    slot, before = engine.info.slot_bytes, engine.info.num_slots
    long = request("long", max_tokens=300)
    running = asyncio.ensure_future(whole(engine, long))
    while engine.stats.value(RUNNING) == 0:
        await asyncio.sleep(0.01)
    told = await engine.configure({"kv_budget": 100 * slot, "max_running": 2}, "ops", "a test")
    assert told.excess_bytes, "the request that runs needs more"
    assert (engine.info.num_slots, engine.info.max_request_tokens) == (100, 101)
    await engine.kill_and_see()
    await until(lambda: engine.unready_reason is None)
    assert engine.info.num_slots == 100
    assert tokens(await running) == answer(300), "it needs more than the budget of now"
    await until(lambda: engine.stats.value(KV_BYTES, "budget") == 100 * slot)
    shown = engine.live_settings.shown()
    assert (shown["kv_budget"].value, shown["kv_budget"].at_start) == (100 * slot, before * slot)
    assert shown["max_running"].value == 2


async def test_a_change_is_made_even_if_who_asked_for_it_leaves(start: Start) -> None:
    engine = await start()
    assert engine.info is not None
    asked = asyncio.ensure_future(engine.configure({"max_running": 2}, "ops", ""))
    await asyncio.sleep(0)
    asked.cancel()
    await until(lambda: engine.live_settings.shown()["max_running"].value == 2)


async def test_a_change_that_the_engine_makes_late_is_announced_and_then_shown(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    assert engine.pid is not None
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.01)
    os.kill(engine.pid, signal.SIGSTOP)
    with pytest.raises(Unavailable, match="makes the change as soon as it can"):
        await engine.configure({"max_running": 2}, "ops", "")
    assert engine.live_settings.shown()["max_running"].value != 2
    os.kill(engine.pid, signal.SIGCONT)
    await until(lambda: engine.live_settings.shown()["max_running"].value == 2)


async def test_a_flush_while_requests_run_is_answered_between_their_steps(start: Start) -> None:
    engine = await start()
    running = asyncio.ensure_future(whole(engine, request("a", max_tokens=1500)))
    while engine.stats.value(RUNNING) == 0:
        await asyncio.sleep(0.01)
    assert isinstance(await engine.ask(Drop()), Dropped)
    assert not running.done(), "the flush waited for the request"
    assert len(await running) > 0

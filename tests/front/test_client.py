"""The engine as a real child process, with the model of no cost: streams, aborts, overload and the
end.

What becomes of requests when it dies is in test_death.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from radixserve import messages
from radixserve.cache.counters import KV_BYTES
from radixserve.config import Settings
from radixserve.engine.counters import GENERATED_TOKENS, PINNED_TOKENS, RUNNING
from radixserve.errors import StartupError, Unavailable
from radixserve.front import child
from radixserve.front.client import ProcessEngine
from radixserve.front.protocol import EngineClient
from radixserve.front.stream import Stream
from radixserve.front.traffic_log import TrafficLog
from radixserve.front.watchdog import Watchdog
from radixserve.prefix import pack
from radixserve.questions import Pin, Unpin
from radixserve.request import Request, Sampling
from radixserve.step import TokenEvent

pytestmark = pytest.mark.slow  # a real engine process

SETTINGS = Settings(
    fake_model=True, kv_budget=4096 * 16, max_running=4, threads=1, log_level="warning"
)


def request(name: str, prompt_length: int = 20, max_tokens: int = 5) -> Request:
    sampling = Sampling(max_tokens=max_tokens, seed=1, temperature=0.0)
    return Request(id=name, prompt_ids=[40] * prompt_length, sampling=sampling)


def engine_of(folder: str, **changes: object) -> ProcessEngine:
    settings = msgspec.structs.replace(SETTINGS, **changes)
    return ProcessEngine(settings, folder, lambda stats: None, lambda cause: None, lambda: None)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(
        json.dumps({"vocab_size": 200, "max_position_embeddings": 2048})
    )
    return str(tmp_path)


Start = Callable[..., Awaitable[ProcessEngine]]


@pytest.fixture
async def start(folder: str) -> AsyncIterator[Start]:
    engines: list[ProcessEngine] = []

    async def started(**changes: object) -> ProcessEngine:
        engine = engine_of(folder, **changes)
        engines.append(engine)
        await engine.start()
        return engine

    yield started
    for engine in engines:
        await engine.stop()
        assert engine.pid is None


def submit(engine: EngineClient, asked: Request) -> Stream:
    """The stream of `asked`, which `engine` has accepted."""
    stream = Stream(asked)
    engine.submit(stream)
    return stream


async def collect(engine: ProcessEngine, asked: Request) -> list[TokenEvent]:
    async with contextlib.aclosing(submit(engine, asked)) as events:
        return [event async for event in events]


def tokens(events: list[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_requests_get_their_tokens_and_the_cache_is_seen(start: Start) -> None:
    engine = await start()
    assert engine.unready_reason is None
    cold = await collect(engine, request("cold"))
    warm = await collect(engine, request("warm"))
    assert tokens(cold) == tokens(warm) == [41, 42, 43, 44, 45]
    assert cold[-1].finish == warm[-1].finish == "length"
    assert (cold[0].num_cached, warm[0].num_cached) == (0, 19)


async def test_numbers_follow_a_call_to_an_engine_that_is_idle(start: Start) -> None:
    engine = await start()
    prompt = request("pinned")
    await collect(engine, prompt)
    asked = Pin(
        id="p",
        seconds=60.0,
        renews=True,
        namespace=prompt.namespace,
        packed=pack(prompt.prompt_ids),
    )
    await engine.ask(asked)
    await until(lambda: engine.stats.value(PINNED_TOKENS) == 20)
    await engine.ask(Unpin(id="p"))
    await until(lambda: engine.stats.value(PINNED_TOKENS) == 0)


async def test_a_stream_left_early_stops_the_request_in_the_engine(start: Start) -> None:
    engine = await start()
    async with contextlib.aclosing(submit(engine, request("left", max_tokens=1900))) as events:
        async for _ in events:
            break
    never_read = submit(engine, request("never read", max_tokens=1900))
    await never_read.aclose()
    await until(
        lambda: engine.stats.value(RUNNING) == 0 and engine.stats.value(KV_BYTES, "leased") == 0
    )
    free, cached = (engine.stats.value(KV_BYTES, state) for state in ("free", "cached"))
    assert free + cached == engine.stats.value(KV_BYTES, "budget") > 0
    assert engine.stats.value(GENERATED_TOKENS) < 2 * 1900


async def test_a_reader_that_is_behind_gets_one_event_with_all_tokens(start: Start) -> None:
    engine = await start()
    async with contextlib.aclosing(submit(engine, request("slow", max_tokens=30))) as events:
        await until(lambda: engine.stats.value(GENERATED_TOKENS) == 30)
        await until(lambda: engine.stats.value(RUNNING) == 0)
        (event,) = [event async for event in events]
    assert len(event.token_ids) == 30
    assert event.finish == "length"
    assert event.num_cached == 0


async def test_the_queue_is_bounded_and_says_when_to_come_back(start: Start) -> None:
    engine = await start(max_queue=2)
    streams = [submit(engine, request(f"r{i}")) for i in range(2)]
    with pytest.raises(Unavailable) as refusal:
        submit(engine, request("one too many"))
    assert refusal.value.code == "server_is_overloaded"
    assert refusal.value.retry_after is not None
    assert 1 <= refusal.value.retry_after <= 60
    for stream in streams:
        assert len(tokens([event async for event in stream])) == 5
        await stream.aclose()
    assert len(tokens(await collect(engine, request("now")))) == 5


async def test_one_tenant_cannot_fill_the_queue_of_another(start: Start) -> None:
    engine = await start(max_queue=4, max_running=1)

    def ask(tenant: str, number: int) -> Stream:
        asked = request(f"{tenant} {number}", max_tokens=40)
        return submit(engine, msgspec.structs.replace(asked, tenant=tenant))

    streams = [ask("flood", number) for number in range(4)]
    with pytest.raises(Unavailable):
        ask("flood", 4)
    streams += [ask("calm", number) for number in range(2)]
    with pytest.raises(Unavailable):  # two of each tenant come before it
        ask("calm", 2)
    for stream in streams:
        assert len(tokens([event async for event in stream])) == 40
        await stream.aclose()


async def test_a_request_that_would_wait_longer_than_its_time_is_refused_at_once(
    start: Start,
) -> None:
    engine = await start(max_running=1)
    engine._backlog.seconds = lambda num_waiting: 30.0 if num_waiting else 0.0  # type: ignore[method-assign]
    first = submit(engine, request("first", max_tokens=1500))

    def late(name: str, seconds: float) -> Stream:
        stream = Stream(request(name))
        stream.deadline = time.monotonic() + seconds
        engine.submit(stream)
        return stream

    with pytest.raises(Unavailable) as refusal:
        late("short", 20.0)
    assert refusal.value.code == "request_timeout"
    assert 24 <= (refusal.value.retry_after or 0) <= 36
    others = [late("long", 40.0), first]
    for stream in others:
        await stream.aclose()
    assert len(tokens(await collect(engine, request("now")))) == 5


async def test_drain_lets_running_requests_end_and_takes_no_new_ones(start: Start) -> None:
    engine = await start()
    running = asyncio.create_task(collect(engine, request("running", max_tokens=500)))
    await asyncio.sleep(0)
    draining = asyncio.create_task(engine.drain(60.0))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="draining"):
        submit(engine, request("late"))
    await draining
    assert len(tokens(await running)) == 500


async def test_drain_aborts_what_is_left_when_its_time_is_over(start: Start) -> None:
    engine = await start()
    streams = [submit(engine, request(f"r{i}", max_tokens=1900)) for i in range(4)]
    await engine.drain(0.0)
    for stream in streams:
        assert [event async for event in stream][-1].finish == "abort"


@pytest.mark.parametrize("turns", range(8))
async def test_an_engine_stopped_while_it_starts_leaves_no_process(
    folder: str, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    monkeypatch.setattr(child, "EXIT_SECONDS", 0.05)
    engine = engine_of(folder)
    starting = asyncio.create_task(engine.start())
    for _ in range(turns):
        await asyncio.sleep(0)
    starting.cancel()
    await engine.stop()
    assert engine.pid is None


async def test_a_hanging_process_is_killed_although_its_end_is_interrupted(folder: str) -> None:
    hanging, ending = child.Child(), asyncio.Event()

    def fail(message: messages.ToFront) -> None:
        assert hanging.pid is not None
        os.kill(hanging.pid, signal.SIGSTOP)
        ending.set()
        raise ValueError("no message")

    watchdog = Watchdog(SETTINGS.hang_seconds, lambda: False)
    life = asyncio.create_task(hanging.run(messages.Start(SETTINGS, folder), fail, watchdog))
    await ending.wait()
    await asyncio.sleep(0)
    life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await life
    assert hanging.pid is None


async def test_a_process_that_not_even_a_kill_ends_holds_nobody_up(
    folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that waits for a frozen file system; here it is stopped, and the kill is left out."""
    monkeypatch.setattr(child, "EXIT_SECONDS", 0.1)
    monkeypatch.setattr(child, "KILL_SECONDS", 0.1)
    monkeypatch.setattr(asyncio.subprocess.Process, "kill", lambda process: None)
    engine = engine_of(folder)
    await engine.start()
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(10):
            await engine.stop()
        assert f"the engine process {pid} was killed" in caplog.text
    finally:
        os.kill(pid, signal.SIGKILL)
        await until(lambda: engine.pid is None)


async def test_a_start_that_is_refused_says_why(tmp_path: Path) -> None:
    engine = engine_of(str(tmp_path / "nothing-here"))
    with pytest.raises(StartupError, match="nothing-here"):
        await engine.start()
    await engine.stop()
    assert engine.pid is None


async def test_requests_are_recorded_with_their_lengths(folder: str, tmp_path: Path) -> None:
    traffic = TrafficLog(tmp_path / "log.jsonl", None)
    engine = engine_of(folder)
    engine.traffic = traffic
    await engine.start()
    try:
        await collect(engine, request("r"))
    finally:
        await engine.stop()
        traffic.close()
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line["input_length"] == 20

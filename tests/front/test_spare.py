"""The supervisor's use of a spare, with child processes that are fakes: whatever becomes of the
spare, there is an engine again. Real processes are in test_spare_process.py.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import msgspec
import pytest

from radixserve.config import Settings
from radixserve.front import spare, supervisor
from radixserve.front.child import Child
from radixserve.front.spare import Spare
from radixserve.front.supervisor import Supervisor
from radixserve.front.watchdog import Watchdog
from radixserve.machine import THIS
from radixserve.messages import Prepare, Ready, Start, ToEngine, ToFront
from radixserve.step import EngineInfo
from tests.front.test_client import SETTINGS, until

INFO = EngineInfo(
    vocab_size=200,
    context_length=2048,
    eos_token_ids=(),
    max_request_tokens=2048,
    num_slots=64,
    pool_slots=64,
    slot_bytes=16,
    device="cpu",
    dtype="float32",
    checkpoint_dtype="float32",
    kv_dtype="float32",
    attention="none",
    exact=True,
)


class Process:
    """In the place of a `Child`: a process that does what the test says."""

    numbers = itertools.count(1)
    all: list[Process]  # in the order in which they were started
    imports = True  # a spare imports everything at once; False: it hangs

    def __init__(self) -> None:
        self.pid: int | None = None
        self.is_prepared = self.is_ended = self.hangs = False
        self.died = asyncio.Event()
        self.served = 0

    def _begin(self) -> None:
        if self.pid is None:
            self.pid = next(Process.numbers)
            Process.all.append(self)

    @property
    def is_open(self) -> bool:
        return self.pid is not None and not self.is_ended

    def send(self, message: ToEngine) -> None:
        raise AssertionError("there are no requests")

    async def prepare(self, prepare: Prepare) -> bool:
        self._begin()
        if self.hangs or not (Process.imports or self.is_prepared):
            await self.died.wait()
        if self.died.is_set():
            return False
        self.is_prepared = True
        return True

    async def ended(self) -> None:
        await self.died.wait()

    async def run(
        self, start: Start, handle: Callable[[ToFront], None], watchdog: Watchdog
    ) -> int | None:
        assert not self.is_ended
        self._begin()
        self.served += 1
        try:
            if not self.died.is_set():
                await asyncio.sleep(0)
                handle(Ready(INFO))
                await self.died.wait()
        finally:
            await self.end()
        return -9

    async def end(self) -> int | None:
        self.is_ended = True
        return -9


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes instead of processes, and pauses of no length."""
    Process.all, Process.imports = [], True
    for module in (spare, supervisor):
        monkeypatch.setattr(module, "Child", Process)
    for name in ("TICK_SECONDS", "QUIET_SECONDS", "AGAIN_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(spare, name, 0.01)
    monkeypatch.setattr(supervisor, "_RESTART_SECONDS", (0.0,))


class Run:
    """A supervisor that runs, and what it told."""

    def __init__(self, setting: str = "on", first: Child | None = None) -> None:
        self.causes: list[str] = []
        self.has_work = False
        self.supervisor = Supervisor(
            lambda: Start(_with(setting), "m"),
            _with(setting),
            lambda _: None,
            lambda: self.has_work,
            self.causes.append,
            first,
        )
        self.task = asyncio.create_task(self.supervisor.run())

    async def up(self) -> Process:
        """The process of the engine that serves."""
        await until(lambda: self.supervisor.is_up)
        return next(each for each in Process.all if each.pid == self.supervisor.pid)

    async def spare(self) -> Process:
        """The spare that is ready."""
        await until(lambda: self.supervisor.spare_pid is not None)
        return next(each for each in Process.all if each.pid == self.supervisor.spare_pid)

    async def kill(self) -> Process:
        """Let the engine die; the next one that serves."""
        dead, deaths = await self.up(), len(self.causes)
        dead.died.set()
        await until(lambda: len(self.causes) > deaths)
        return await self.up()


Runs = Callable[..., Awaitable[Run]]


@pytest.fixture
async def start() -> AsyncIterator[Runs]:
    runs: list[Run] = []

    async def started(setting: str = "on") -> Run:
        runs.append(Run(setting))
        await runs[-1].up()
        return runs[-1]

    yield started
    for run in runs:
        run.task.cancel()
        await asyncio.wait([run.task])
    assert all(each.is_ended for each in Process.all), "a process is left behind"


async def test_the_spare_takes_over_at_each_death_and_another_is_started(start: Runs) -> None:
    run = await start()
    for _ in range(3):
        waiting = await run.spare()
        assert not waiting.served
        assert await run.kill() is waiting
    assert run.causes == ["crash"] * 3
    assert [each.served for each in Process.all] == [1, 1, 1, 1]


async def test_a_spare_that_dies_is_replaced(start: Runs) -> None:
    run = await start()
    first = await run.spare()
    first.died.set()
    await until(lambda: run.supervisor.spare_pid not in (None, first.pid))
    assert first.is_ended
    assert run.causes == []
    assert await run.kill() is Process.all[2]


async def test_a_spare_that_dies_with_the_engine_is_done_without(start: Runs) -> None:
    run = await start()
    first = await run.spare()
    first.died.set()
    assert await run.kill() is not first
    assert not first.served
    assert run.causes == ["crash"]


async def test_a_spare_that_hangs_is_killed_when_it_is_needed(start: Runs) -> None:
    run = await start()
    first = await run.spare()
    first.hangs = True
    assert await run.kill() is not first
    assert first.is_ended
    assert not first.served
    assert run.causes == ["crash"]
    assert await run.spare() is not first


async def test_a_spare_that_hangs_while_it_imports_is_not_waited_for(start: Runs) -> None:
    Process.imports = False
    run = await start()
    await until(lambda: len(Process.all) == 2)
    assert run.supervisor.spare_pid is None
    assert await run.kill() is Process.all[2]
    assert Process.all[1].is_ended
    assert run.causes == ["crash"]


async def test_a_spare_that_dies_while_it_imports_is_replaced(start: Runs) -> None:
    Process.imports = False
    run = await start()
    await until(lambda: len(Process.all) == 2)
    Process.all[1].died.set()
    Process.imports = True
    assert await run.spare() is Process.all[2]
    assert run.causes == []


async def test_a_spare_that_cannot_be_started_is_tried_again(
    start: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    async def fail(self: Process, prepare: Prepare) -> bool:
        tries.append(self)
        raise OSError("too many open files")

    with monkeypatch.context() as broken:
        broken.setattr(Process, "prepare", fail)
        run = await start()
        await until(lambda: len(tries) > 1)
    await run.spare()
    assert run.causes == []


async def test_a_server_that_stops_while_a_spare_is_asked_leaves_nothing_behind(
    start: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare, "ANSWER_SECONDS", 60.0)
    run = await start()
    asked = await run.spare()
    asked.hangs = True
    (await run.up()).died.set()
    await until(lambda: run.causes == ["crash"])
    await asyncio.sleep(0.05)
    run.task.cancel()
    await asyncio.wait([run.task])
    assert asked.is_ended


async def test_a_process_that_was_begun_is_the_first_engine_and_no_later_one() -> None:
    begun = Process()
    begun._begin()
    run = Run(first=cast(Child, begun))
    assert await run.up() is begun
    assert await run.kill() is not begun
    assert begun.served == 1
    run.task.cancel()
    await asyncio.wait([run.task])


async def test_the_first_engine_never_waits_for_a_spare(start: Runs) -> None:
    run = await start()
    assert Process.all[0] is await run.up()
    assert not Process.all[0].is_prepared


@pytest.mark.parametrize(("busy", "least", "most"), [(True, 0.5, 5.0), (False, 0.1, 0.5)])
async def test_a_spare_waits_for_a_quiet_moment_but_not_forever(
    busy: bool, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(spare, "LATEST_SECONDS", 0.5)
    kept, clock = Spare(_with("on"), lambda: busy), asyncio.get_running_loop().time
    since = clock()
    kept.keep()
    await until(lambda: len(Process.all) == 1)
    assert least <= clock() - since < most
    await kept.close()


@pytest.mark.parametrize(
    ("setting", "fake", "free", "expected"),
    [
        ("auto", False, 4 << 30, True),
        ("auto", False, 1 << 30, False),
        ("auto", True, 4 << 30, False),
        ("on", True, 0, True),
        ("off", False, 4 << 30, False),
    ],
)
async def test_where_a_spare_is_kept(
    setting: str, fake: bool, free: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(THIS), "free_bytes", lambda self: free)
    kept = Spare(_with(setting, fake), lambda: False)
    kept.keep()
    await asyncio.sleep(0.1)
    assert bool(Process.all) == expected
    await kept.close()


def _with(setting: str, fake: bool = True) -> Settings:
    return msgspec.structs.replace(SETTINGS, spare_engine=setting, fake_model=fake)

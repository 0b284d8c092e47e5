"""A spare engine as a real child process with traps (`tests.front.trapped`): it takes over, and no
stream notices. What the supervisor does when a spare fails is in test_spare.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from radixserve.front import spare
from tests.front.test_client import submit, tokens, until
from tests.front.test_death import LONG, Trapped, answer, request, rest
from tests.front.test_death import start as start_trapped
from tests.front.trapped import Trap, count

pytestmark = pytest.mark.slow

Start = Callable[..., Awaitable[Trapped]]

trapped = start_trapped


@pytest.fixture
def start(trapped: Start, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts an engine with a spare, without pauses."""
    for name in ("TICK_SECONDS", "QUIET_SECONDS", "LATEST_SECONDS", "AGAIN_SECONDS"):
        monkeypatch.setattr(spare, name, 0.02)
    monkeypatch.setattr(spare, "ANSWER_SECONDS", 30.0)

    async def started(**changes: object) -> Trapped:
        return await trapped(spare_engine="on", **changes)

    return started


async def spare_of(engine: Trapped) -> int:
    """The process id of a spare that is ready."""
    await until(lambda: engine.spare_pid is not None)
    assert engine.spare_pid is not None
    return engine.spare_pid


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def name(pid: int | None) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def sockets(pid: int) -> list[str]:
    """The sockets that a process holds, if it holds descriptors of nothing else but its output."""
    links = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    return [link for link in links if link.startswith("socket:")]


async def test_the_spare_takes_over_and_streams_go_on(start: Start) -> None:
    engine = await start()
    waiting = await spare_of(engine)
    assert [name(engine.pid), name(waiting)] == ["radix-engine", "radix-spare"]
    assert len(sockets(waiting)) == 1
    stream = submit(engine, request("going"))
    first = await anext(stream)
    await engine.kill_and_see()
    assert tokens([first, *await rest(stream)]) == answer(LONG)
    assert engine.pid == waiting
    assert name(waiting) == "radix-engine"
    assert engine.causes == ["crash"]
    assert await spare_of(engine) != waiting


async def test_a_spare_that_is_stopped_is_killed_when_it_is_needed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    stopped = await spare_of(engine)
    os.kill(stopped, signal.SIGSTOP)
    monkeypatch.setattr(spare, "ANSWER_SECONDS", 0.2)
    stream = submit(engine, request("going"))
    first = await anext(stream)
    await engine.kill_and_see()
    assert tokens([first, *await rest(stream)]) == answer(LONG)
    assert engine.pid not in (None, stopped)
    assert engine.causes == ["crash"]
    assert not exists(stopped)


async def test_a_poisonous_request_kills_engines_that_were_spares_no_more_often(
    start: Start,
) -> None:
    engine = await start()
    await spare_of(engine)
    going = submit(engine, request("going"))
    first = await anext(going)
    last = (await rest(submit(engine, request("poison", trap=Trap.KILL))))[-1]
    assert (last.finish, "twice" in str(last.error)) == ("error", True)
    assert count(engine.folder, "killed") == 2
    assert tokens([first, *await rest(going)]) == answer(LONG)
    assert engine.unready_reason is None


@pytest.mark.parametrize("imported", [True, False])
async def test_the_spare_ends_with_the_server(start: Start, imported: bool) -> None:
    engine = await start()
    pid = await spare_of(engine)
    if not imported:
        (engine.folder / "hang_import").touch()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: count(engine.folder, "spares") == 2)
    await engine.stop()
    assert engine.spare_pid is None
    assert not exists(pid)

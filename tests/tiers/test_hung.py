"""A disk that hangs holds up nobody: requests go on, and the engine process ends when it is asked
to.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from pathlib import Path

import pytest

from radixserve.front import child
from radixserve.front.stream import Stream
from radixserve.request import Request, Sampling
from tests.engine.content_model import expected
from tests.front.test_client import engine_of, submit, until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("where", ["write", "sql", "close", "nowhere"])
async def test_the_engine_ends_though_its_disk_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("HANG_AT", where)
    monkeypatch.setattr(child, "_COMMAND", (sys.executable, "-m", "tests.tiers.hung"))
    monkeypatch.chdir(ROOT)
    engine = engine_of(str(tmp_path))
    await engine.start()
    try:
        await answered(submit(engine, request("before", 3)), 3)
        await until(lambda: any((tmp_path / "store" / "runs").iterdir()))
        (tmp_path / "hang").touch()
        await answered(submit(engine, request("hung", 4)), 4)
        if where in ("write", "sql"):
            await until((tmp_path / "hangs").exists)
        await answered(submit(engine, request("after", 5)), 5)
    finally:
        began = time.monotonic()
        await engine.stop()
    assert time.monotonic() - began < child.EXIT_SECONDS - 0.5, "it left by itself"
    assert (tmp_path / "hangs").exists() == (where != "nowhere")


def request(name: str, first: int) -> Request:
    sampling = Sampling(max_tokens=6, seed=1, temperature=0.0)
    return Request(id=name, prompt_ids=[first] * 30, sampling=sampling)


async def answered(stream: Stream, first: int) -> None:
    """All tokens came, in good time, and are right."""
    async with asyncio.timeout(20), contextlib.aclosing(stream):
        events = [event async for event in stream]
    assert [token for event in events for token in event.token_ids] == expected([first] * 30, 6)

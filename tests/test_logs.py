"""Log lines: the request they belong to, and warnings that may not flood the log."""

from __future__ import annotations

import asyncio
import logging

import pytest

from radixserve.logs import REQUEST_ID, Seldom, configure_logging

LOG = logging.getLogger("radixserve.test")


@pytest.fixture(autouse=True)
def _restored(capsys: pytest.CaptureFixture[str]) -> object:
    root, own = logging.getLogger(), logging.getLogger("radixserve")
    before = (root.handlers[:], root.level, own.level)
    yield
    root.handlers[:], root.level, own.level = before
    logging.captureWarnings(False)


async def test_a_line_names_the_request_whose_task_logs_it_and_others_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("info")

    async def handle(identity: str) -> None:
        REQUEST_ID.set(identity)
        await asyncio.sleep(0)
        await asyncio.create_task(part())

    async def part() -> None:
        LOG.info("done")

    LOG.info("starting")
    await asyncio.gather(*(asyncio.create_task(handle(each)) for each in ("a", "b")))
    lines = [line.partition("radixserve.test:")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [" starting", " [a] done", " [b] done"]


def test_a_repeated_warning_is_logged_once_a_minute_with_the_number_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    times = iter((5.0, 5.1, 64.9, 65.0, 66.0))
    seldom = Seldom(LOG, 60.0, lambda: next(times))
    for _ in range(5):
        seldom.warning("full")
    assert caplog.messages == ["full", "full (2 more since the last such line)"]

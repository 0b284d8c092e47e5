"""Waiting for a result unless an event comes first."""

from __future__ import annotations

import asyncio

import pytest

from radixserve.waiting import unless_set


async def test_the_result_or_nothing_and_what_is_pointless_is_cancelled() -> None:
    event, began, cancelled = asyncio.Event(), list[str](), list[str]()

    async def endless(name: str) -> str:
        began.append(name)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(name)
        return name

    async def fails() -> None:
        raise ValueError("no")

    assert await unless_set(event, asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError, match="no"):
        await unless_set(event, fails())
    outer = asyncio.create_task(unless_set(event, endless("left")))
    await asyncio.sleep(0.001)
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    waiting = asyncio.create_task(unless_set(event, endless("late")))
    await asyncio.sleep(0.001)
    event.set()
    assert await waiting is None
    assert await unless_set(event, endless("never")) is None
    assert began == cancelled == ["left", "late"]

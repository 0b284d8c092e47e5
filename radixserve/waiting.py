"""Waiting for a result unless an event makes it pointless. Knows nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def unless_set(event: asyncio.Event, starting: Awaitable[T]) -> T | None:
    """The result of `starting`; None, and `starting` cancelled, if `event` is set first. Raises
    what `starting` raises.
    """
    started, stopped = asyncio.ensure_future(starting), asyncio.create_task(event.wait())
    try:
        if not event.is_set():
            await asyncio.wait([started, stopped], return_when=asyncio.FIRST_COMPLETED)
        return started.result() if started.done() else None
    finally:
        stopped.cancel()
        if not started.done():
            started.cancel()
            await asyncio.wait([started])

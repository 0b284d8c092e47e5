"""Keeps a spare engine process beside the engine that serves: it has imported everything, so it
only has to load the model when it takes over.

It is started at the first quiet moment of an engine and ended with the server. It is not watched,
and counted nowhere, until it serves. Whatever happens to it, the worst result is that the next
engine is started without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from radixserve.config import Settings
from radixserve.front.child import Child, how_it_ended
from radixserve.machine import THIS
from radixserve.messages import Prepare

log = logging.getLogger(__name__)

TICK_SECONDS = 0.2  # between two looks at whether the engine has work
QUIET_SECONDS = 1.0  # a spare is started once the engine has had no work for so long ...
LATEST_SECONDS = 30.0  # ... or once that was awaited for so long
AGAIN_SECONDS = 30.0  # from the end of a spare, before another one waits for a quiet moment
ANSWER_SECONDS = 2.0  # in which a spare has to answer before it takes over
ROOM_BYTES = 2 << 30  # "auto" keeps no spare where less memory is free


class Spare:
    """The spare of one server: none, or one at a time."""

    def __init__(self, settings: Settings, has_work: Callable[[], bool]) -> None:
        """`has_work` tells whether a request is inside the engine that serves."""
        self._settings = settings
        self._has_work = has_work
        self._keeping: asyncio.Task[None] | None = None
        self._prepared: Child | None = None  # has imported everything, and waits

    @property
    def pid(self) -> int | None:
        """The process id of a spare that could take over; None if there is none."""
        return None if self._prepared is None else self._prepared.pid

    def keep(self) -> None:
        """An engine is ready: keep a spare from its next quiet moment on."""
        if self._keeping is None and _is_wanted(self._settings):
            self._keeping = asyncio.create_task(self._keep())

    async def take(self) -> Child | None:
        """The spare, to be run as an engine; None if there is none, or if it does not answer. No
        other is kept until `keep` is called again.
        """
        child, self._prepared = self._prepared, None
        try:
            await self.close()
            if child is not None and await self._answers(child):
                log.info("the spare engine process %d takes over", child.pid)
                taken, child = child, None
                return taken
        finally:
            if child is not None:
                log.warning("the spare engine process cannot take over")
                await child.end()
        return None

    async def close(self) -> None:
        """End the spare, if there is one that was not taken."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait([keeping])

    async def _answers(self, child: Child) -> bool:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await child.prepare(Prepare(self._settings))
        except (TimeoutError, OSError, ValueError):
            return False

    async def _keep(self) -> None:
        """Start one spare after the other, as long as there is room."""
        while True:
            await self._quiet_moment()
            if self._settings.spare_engine == "auto" and THIS.free_bytes() < ROOM_BYTES:
                log.info("no spare engine process is kept, because little memory is free")
                return
            await self._keep_one()
            await asyncio.sleep(AGAIN_SECONDS)

    async def _quiet_moment(self) -> None:
        """Return once the engine has had no work for QUIET_SECONDS, or after LATEST_SECONDS."""
        clock = asyncio.get_running_loop().time
        began = quiet_since = clock()
        while clock() - quiet_since < QUIET_SECONDS and clock() - began < LATEST_SECONDS:
            await asyncio.sleep(TICK_SECONDS)
            if self._has_work():
                quiet_since = clock()

    async def _keep_one(self) -> None:
        """Start a spare and wait until it ends. If this is cancelled the spare is ended, unless
        it was taken.
        """
        child, is_taken, is_closing = Child(), False, False
        try:
            if await child.prepare(Prepare(self._settings)):
                self._prepared = child
                log.info("the spare engine process %d is ready to take over", child.pid)
                await child.ended()
        except (OSError, ValueError) as error:
            log.warning("the spare engine process failed: %s", error)
        except asyncio.CancelledError:
            is_taken, is_closing = child.is_prepared and self._prepared is not child, True
            raise
        finally:
            if not is_taken:
                self._prepared = None
                code = await child.end()
                # At the end of the server it is killed, which must not look like an accident.
                level = logging.DEBUG if is_closing else logging.INFO
                log.log(level, "the spare engine process %s", how_it_ended(code))


def _is_wanted(settings: Settings) -> bool:
    """Whether a spare is kept where there is room: by default for real models, because the fake one
    starts in a moment.
    """
    if settings.spare_engine == "auto":
        return not settings.fake_model
    return settings.spare_engine == "on"

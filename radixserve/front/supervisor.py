"""Starts the engine process, and starts it again when it has died or hung.

Owns the child process, the pauses between its lives, and the spare that may be the next one. Knows
no requests.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from radixserve.config import Settings
from radixserve.errors import StartupError
from radixserve.front.child import Child, Hung, how_it_ended
from radixserve.front.spare import Spare
from radixserve.front.watchdog import Watchdog
from radixserve.messages import (
    FromEngine,
    Loading,
    Prepared,
    Ready,
    Refused,
    Report,
    Start,
    ToEngine,
    ToFront,
)

log = logging.getLogger(__name__)

_RESTART_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # wait before the n-th restart in a row
# An engine that lived this long, or generated a token, starts the row anew.
_STABLE_SECONDS = 60.0
_HOPELESS_STARTS = 3

Cause = Literal["crash", "hang"]
"""Why an engine has to be started again."""


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a life of the engine ended; `words` go on behind "the engine process"."""

    cause: Cause
    words: str


class Supervisor:
    """Runs the engine process again and again."""

    def __init__(
        self,
        start: Callable[[], Start],
        settings: Settings,
        handle: Callable[[FromEngine], None],
        has_work: Callable[[], bool],
        on_death: Callable[[Cause], None],
        first: Child | None = None,
    ) -> None:
        """`start` gives what each engine is told first; `has_work` tells whether a request is in
        the engine; `on_death` is called before each restart. `first` is the process of the first
        life, if it was begun.
        """
        self._start = start
        self._handle = handle
        self._on_death = on_death
        self._watchdog = Watchdog(settings.hang_seconds, has_work)
        self._spare = Spare(settings, has_work)
        self._first = first
        self._child = Child()
        self._ready = False  # the engine of this life is loaded
        self._ever_ready = False
        self._has_worked = False  # this life generated a token
        self._failed_starts = 0  # in a row

    @property
    def is_up(self) -> bool:
        """Whether the engine is ready, and is not known to have ended."""
        return self._ready and self._child.is_open

    @property
    def is_failing(self) -> bool:
        """Whether several starts in a row have failed. The next one may succeed."""
        return self._failed_starts >= _HOPELESS_STARTS

    @property
    def silent_seconds(self) -> float:
        """For how long at least an engine with work has sent nothing; 0 while it has none."""
        return self._watchdog.silent_seconds

    @property
    def pid(self) -> int | None:
        return self._child.pid

    @property
    def spare_pid(self) -> int | None:
        """The process id of a spare that could take over; None if there is none."""
        return self._spare.pid

    def send(self, message: ToEngine) -> None:
        """Queue `message` for the present engine."""
        self._child.send(message)

    async def run(self) -> None:
        """Runs until it is cancelled, or raises StartupError if the first start fails."""
        try:
            await self._lives()
        finally:
            await self._spare.close()

    async def _lives(self) -> None:
        deaths = 0
        while True:
            began = time.monotonic()
            ending = await self._live()
            if not self._ever_ready:
                raise StartupError(_not_started(ending))
            log.error("the engine process %s", ending.words)
            self._failed_starts = 0 if self._ready else self._failed_starts + 1
            anew = self._has_worked or time.monotonic() - began > _STABLE_SECONDS
            deaths = 1 if anew else deaths + 1
            self._on_death(ending.cause)
            await asyncio.sleep(_RESTART_SECONDS[min(deaths, len(_RESTART_SECONDS)) - 1])

    async def _live(self) -> _Ending:
        """Run one life of the engine; returns how it ended. Raises errors that make the first start
        impossible.
        """
        self._ready = self._has_worked = False
        first, self._first = self._first, None
        self._child = first or await self._spare.take() or Child()
        self._watchdog.watch_anew()
        try:
            code = await self._child.run(self._start(), self._hear, self._watchdog)
        except Hung:
            doing = "it had work" if self._ready else "it started"
            seconds = self._watchdog.silent_seconds
            return _Ending("hang", f"did nothing for {seconds:.0f} s while {doing}; it was killed")
        except (StartupError, OSError, ValueError) as error:
            if not self._ever_ready:
                raise
            return _Ending("crash", f"failed: {error}")
        return _Ending("crash", how_it_ended(code))

    def _hear(self, message: ToFront) -> None:
        if isinstance(message, Refused):
            raise StartupError(message.message)
        if isinstance(message, Loading):
            log.info("engine: %s", message.stage)
            return
        if isinstance(message, Prepared):
            return  # belongs to its time as a spare
        if isinstance(message, Ready):
            self._ready = self._ever_ready = True
            self._failed_starts = 0
            self._watchdog.loaded()
            self._spare.keep()
        elif isinstance(message, Report):
            self._has_worked = self._has_worked or any(event.token_ids for event in message.events)
        self._handle(message)


def _not_started(ending: _Ending) -> str:
    """The sentence for the operator when the first start of the engine ended like this."""
    if ending.cause == "hang":
        return f"the engine process {ending.words}; hang_seconds sets how long it may do nothing"
    hint = (
        "the machine, or the container, may lack the memory for the model"
        if ending.words.endswith(signal.SIGKILL.name)
        else "its last words are above"
    )
    return f"the engine process {ending.words} while it started: {hint}"

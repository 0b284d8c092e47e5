"""The front's side of the engine: starts the process, restarts it when it dies, and carries requests to it.

Owns the live requests and the restarts; one life of the process is `Child`'s. Knows no HTTP, no text and no torch.
Everything here runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable

from radixserve.config import Settings
from radixserve.engine.child import Child
from radixserve.engine.live import Live, LiveStream
from radixserve.engine.messages import Abort, Loading, Ready, Refused, Report, Start, Submit, ToFront
from radixserve.engine.protocol import EventStream
from radixserve.errors import StartupError, Unavailable
from radixserve.request import Request
from radixserve.step import EngineInfo, EngineStats, TokenEvent

log = logging.getLogger(__name__)

STALLED_SECONDS = 60.0  # live requests and no report for that long: something hangs
_RESTART_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # wait before the n-th restart in a row
_STABLE_SECONDS = 60.0  # an engine that lived this long starts the row anew
_ENGINE_DIED = "the engine process died; the request was not completed"


class ProcessEngine:
    """An `EngineClient` whose engine is a child process."""

    def __init__(
        self, settings: Settings, model: str, on_stats: Callable[[EngineStats], None], on_restart: Callable[[], None]
    ) -> None:
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self._settings = settings
        self._model = model
        self._on_stats = on_stats
        self._on_restart = on_restart
        self._live: dict[str, Live] = {}
        self._state: str | None = "loading"  # unready_reason without the stall check
        self._idle = asyncio.Event()  # set while nothing is live
        self._idle.set()
        self._heard_at = time.monotonic()
        self._service_seconds = 1.0  # moving average of a request's life
        self._child = Child()
        self._supervisor: asyncio.Task[None] | None = None
        self._loaded: asyncio.Future[EngineInfo] | None = None

    @property
    def unready_reason(self) -> str | None:
        stalled = bool(self._live) and time.monotonic() - self._heard_at > STALLED_SECONDS
        return "stalled" if self._state is None and stalled else self._state

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None while there is none."""
        return self._child.pid

    # life of the process

    async def start(self) -> EngineInfo:
        """Start the engine and wait until its model is loaded.

        Raises:
            StartupError: the engine refused to start; says why.
        """
        self._loaded = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise())
        self._supervisor.add_done_callback(self._supervision_ended)
        return await self._loaded

    def _supervision_ended(self, supervisor: asyncio.Task[None]) -> None:
        if self._loaded is not None and not self._loaded.done() and not supervisor.cancelled():
            self._loaded.set_exception(supervisor.exception() or StartupError("the engine was not started"))

    async def drain(self, seconds: float) -> None:
        """Take nothing new, wait for what runs, and abort what is left after `seconds`."""
        self._state = "draining"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        self._end_all("the server is shutting down")

    async def stop(self) -> None:
        """End the engine process; live requests end with "abort"."""
        self._state = "stopped"
        self._end_all("the server is shutting down")
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])

    async def _supervise(self) -> None:
        """Run the engine, again and again. Ends by cancellation, or with StartupError before the first Ready."""
        deaths = 0
        while True:
            started = time.monotonic()
            await self._live_once()
            deaths = 1 if time.monotonic() - started > _STABLE_SECONDS else deaths + 1
            self._on_restart()
            await asyncio.sleep(_RESTART_SECONDS[min(deaths, len(_RESTART_SECONDS)) - 1])

    async def _live_once(self) -> None:
        """One life of the engine; returns when it ended after having served, so that another try makes sense."""
        self._child = Child()
        try:
            code = await self._child.run(Start(self._settings, self._model), self._handle)
            ending = f"ended with exit code {code}"
        except (StartupError, OSError, ValueError) as error:
            if self.info is None:
                raise
            ending = f"failed: {error}"
        finally:
            self._mourn()
        if self.info is None:
            raise StartupError(f"the engine process {ending} while it started; its output above tells why")
        log.error("the engine process %s", ending)

    def _mourn(self) -> None:
        """Tell every live request that its engine is gone, and forget what that engine said of itself."""
        if self._state is None:
            self._state = "restarting"
        self.stats = EngineStats()
        self._end_all(_ENGINE_DIED)

    # messages

    def _handle(self, message: ToFront) -> None:
        self._heard_at = time.monotonic()
        if isinstance(message, Report):
            self._take_report(message)
        elif isinstance(message, Ready):
            self._take_ready(message.info)
        elif isinstance(message, Refused):
            raise StartupError(message.message)
        elif isinstance(message, Loading):
            log.info("engine: %s", message.stage)

    def _take_ready(self, info: EngineInfo) -> None:
        self.info = info
        if self._state in ("loading", "restarting"):
            self._state = None
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(info)

    def _take_report(self, report: Report) -> None:
        if report.stats is not None:
            self.stats = report.stats
            self._on_stats(report.stats)
        for event in report.events:
            live = self._live.get(event.request_id)
            if live is not None:
                live.push(event)
                if event.finish is not None:
                    self._forget(event.request_id)

    # requests

    def submit(self, request: Request) -> EventStream:
        """See `EngineClient.submit`."""
        self._refuse_if_unavailable()
        live = self._live[request.id] = Live(request)
        self._idle.clear()
        if len(self._live) == 1:
            self._heard_at = time.monotonic()
        self._child.send(Submit(request))
        return LiveStream(live, self._leave)

    def _leave(self, live: Live) -> None:
        """The reader of `live` is gone; if the request still runs, it runs for nobody."""
        if self._forget(live.request.id):
            self._child.send(Abort(live.request.id))

    def abort(self, request_id: str) -> None:
        """See `EngineClient.abort`."""
        if request_id in self._live:
            self._child.send(Abort(request_id))

    def _refuse_if_unavailable(self) -> None:
        reason = self.unready_reason
        if reason is not None:
            raise Unavailable(
                f"the server takes no requests now: {reason}", code="server_not_ready", retry_after=self._retry_after()
            )
        waiting = sum(not live.started for live in self._live.values())
        if waiting >= self._settings.max_queue:
            raise Unavailable(f"{waiting} requests wait already; try again later", retry_after=self._retry_after())

    def _retry_after(self) -> int:
        """Seconds until the queue has probably moved: what waits, at the pace of late."""
        pace = self._service_seconds / self._settings.max_running
        return min(60, max(1, math.ceil(len(self._live) * pace)))

    def _forget(self, request_id: str) -> bool:
        live = self._live.pop(request_id, None)
        if live is not None and live.request.arrived:
            life = time.monotonic() - live.request.arrived
            self._service_seconds += 0.1 * (life - self._service_seconds)
        if not self._live:
            self._idle.set()
        return live is not None

    def _end_all(self, reason: str) -> None:
        for request_id, live in list(self._live.items()):
            self._child.send(Abort(request_id))
            live.push(TokenEvent(request_id=request_id, finish="abort", error=reason))
            self._forget(request_id)

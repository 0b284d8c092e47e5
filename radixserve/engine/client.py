"""The front's side of the engine: starts the process, restarts it when it dies, and carries requests to it.

Owns the child process, the socket to it and, for every live request, the prompt and the tokens sent so far. Knows no
HTTP, no text and no torch. Everything here runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from radixserve.config import Settings
from radixserve.engine.messages import (
    Abort,
    FrameReader,
    Loading,
    Ready,
    Refused,
    Report,
    Start,
    Submit,
    ToEngine,
    ToFront,
    encode,
)
from radixserve.engine.protocol import EventStream
from radixserve.errors import StartupError, Unavailable
from radixserve.request import Request
from radixserve.step import EngineInfo, EngineStats, TokenEvent

log = logging.getLogger(__name__)

STALLED_SECONDS = 60.0  # live requests and no report for that long: something hangs
_RESTART_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # wait before the n-th restart in a row
_STABLE_SECONDS = 60.0  # an engine that lived this long starts the row anew
_EXIT_SECONDS = 5.0
_READ_BYTES = 1 << 20
_ENGINE_DIED = "the engine process died; the request was not completed"


@dataclass(slots=True)
class _Live:
    """A request that has not ended: what was asked, what the client has, and what it has not fetched yet."""

    request: Request
    output_ids: list[int] = field(default_factory=list)
    pending: TokenEvent | None = None  # events not fetched yet, merged into one
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    started: bool = False

    def push(self, event: TokenEvent) -> None:
        """A reader that is behind gets one event with all the tokens, so what waits here stays small."""
        self.started = True
        self.output_ids += event.token_ids
        self.pending = event if self.pending is None else _merged(self.pending, event)
        self.arrived.set()


class _Stream:
    """The events of one live request; an `EventStream`."""

    def __init__(self, live: _Live, leave: Callable[[_Live], None]) -> None:
        self._request = live
        self._leave = leave
        self._ended = False

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> TokenEvent:
        if self._ended:
            raise StopAsyncIteration
        await self._request.arrived.wait()
        self._request.arrived.clear()
        event, self._request.pending = self._request.pending, None
        assert event is not None, "woken without an event"
        self._ended = event.finish is not None
        return event

    async def aclose(self) -> None:
        self._ended = True
        self._leave(self._request)


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
        self._live: dict[str, _Live] = {}
        self._state: str | None = "loading"  # unready_reason without the stall check
        self._idle = asyncio.Event()  # set while nothing is live
        self._idle.set()
        self._heard_at = time.monotonic()
        self._service_seconds = 1.0  # moving average of a request's life
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._loaded: asyncio.Future[EngineInfo] | None = None

    @property
    def unready_reason(self) -> str | None:
        stalled = bool(self._live) and time.monotonic() - self._heard_at > STALLED_SECONDS
        return "stalled" if self._state is None and stalled else self._state

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None while there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

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
        try:
            await self._run_once()
            ending = f"ended with exit code {self._process.returncode if self._process else None}"
        except (StartupError, OSError, ValueError) as error:
            if self.info is None:
                raise
            ending = f"failed: {error}"
        if self.info is None:
            raise StartupError(f"the engine process {ending} while it started; its output above tells why")
        log.error("the engine process %s", ending)

    async def _run_once(self) -> None:
        """One life of the engine process, from spawn to exit."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "radixserve.engine.process", str(theirs.fileno()),
                pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL, env=_environment(self._settings),
            )  # fmt: skip
        reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            self._send(Start(self._settings, self._model))
            await self._read(reader)
        finally:
            await self._close_process()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        frames, decoder = FrameReader(), msgspec.msgpack.Decoder(ToFront)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_READ_BYTES):
                for body in frames.feed(data):
                    self._handle(decoder.decode(body))

    async def _close_process(self) -> None:
        """The engine leaves when its socket closes; it is killed if it does not."""
        assert self._process is not None
        assert self._writer is not None
        if self._state is None:
            self._state = "restarting"
        self._end_all(_ENGINE_DIED)
        self._writer.close()
        self._writer = None
        try:
            await asyncio.wait_for(self._process.wait(), _EXIT_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    # messages

    def _send(self, message: ToEngine) -> None:
        if self._writer is not None:
            self._writer.write(encode(message))

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
        live = self._live[request.id] = _Live(request)
        self._idle.clear()
        if len(self._live) == 1:
            self._heard_at = time.monotonic()
        self._send(Submit(request))
        return _Stream(live, self._leave)

    def _leave(self, live: _Live) -> None:
        """The reader of `live` is gone; if the request still runs, it runs for nobody."""
        if self._forget(live.request.id):
            self._send(Abort(live.request.id))

    def abort(self, request_id: str) -> None:
        """See `EngineClient.abort`."""
        if request_id in self._live:
            self._send(Abort(request_id))

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
            self._send(Abort(request_id))
            live.push(TokenEvent(request_id=request_id, finish="abort", error=reason))
            self._forget(request_id)


def _merged(first: TokenEvent, then: TokenEvent) -> TokenEvent:
    """`first` and `then` of one request as one event."""
    first.token_ids = first.token_ids + then.token_ids
    if then.logprobs is not None:
        first.logprobs = (first.logprobs or []) + then.logprobs
    first.finish, first.stop_token_id, first.error = then.finish, then.stop_token_id, then.error
    return first


def _environment(settings: Settings) -> dict[str, str]:
    """The engine's environment: its thread pools are as large as `threads` says, and made before any import."""
    threads = str(settings.threads or len(os.sched_getaffinity(0)))
    return os.environ | {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, "NUMBA_THREADING_LAYER": "omp"}

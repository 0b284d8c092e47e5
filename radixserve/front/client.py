"""The front's side of the engine: sends requests to it, and sends them again to the next engine
process when one has died.

Decides which engine gets a live request; the `Supervisor` starts and restarts engines, the `Gate`
decides which requests may enter. Knows no HTTP, no text and no torch. Everything here runs on the
event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec

from radixserve.adapters import sources_of
from radixserve.blocks import BlockChanges
from radixserve.config import Settings
from radixserve.engine.counters import WAITING
from radixserve.errors import StartupError, Unavailable
from radixserve.front.adapters import Adapters
from radixserve.front.backlog import Backlog, retry_after
from radixserve.front.child import Child
from radixserve.front.gate import Gate
from radixserve.front.kv_events import KVEvents
from radixserve.front.live_settings import LiveSettings, Value
from radixserve.front.overload import Overload
from radixserve.front.pins import KeptPins
from radixserve.front.questions import ANSWER_SECONDS, MAX_WAITING, Questions
from radixserve.front.stream import Stream
from radixserve.front.streams import Streams
from radixserve.front.supervisor import Cause, Supervisor
from radixserve.front.traffic_log import TrafficLog
from radixserve.messages import Abort, FromEngine, PinChanges, Ready, Report, Start
from radixserve.questions import (
    Answered,
    Asked,
    Configured,
    Drop,
    Dropped,
    Question,
    RestorePins,
)
from radixserve.step import EngineInfo, EngineStats, FinishReason, TokenEvent
from radixserve.tiers import DISK

T = TypeVar("T")

log = logging.getLogger(__name__)

_KILLED_TWICE = (
    "the engine process died or hung twice while it began this request and no other; "
    "it is not tried again"
)
_CHANGES_LATER = (
    f"The engine has not answered for {ANSWER_SECONDS:.0f} seconds. It makes the change as soon as "
    "it can; GET /config shows the new values then."
)
_STALLED_SHARE = 0.5  # of hang_seconds without a step, after which health reports "stalled"
_DOES_NOT_START = "the engine process does not start"
_SHUTTING_DOWN = "the server is shutting down"


class ProcessEngine:
    """An `EngineClient` whose engine is a child process. If that process dies no stream breaks, and
    if it hangs it is killed.

    Every live request is then submitted again, with the tokens that it has received: since each
    token depends only on the request, the tokens before it and its position, the next engine
    continues with the very next token.
    """

    def __init__(
        self,
        settings: Settings,
        model: str,
        on_stats: Callable[[EngineStats], None],
        on_restart: Callable[[Cause], None],
        on_resume: Callable[[], None],
        first: Child | None = None,
    ) -> None:
        """`on_restart` is called for each death, `on_resume` for each request that is submitted
        again to a later engine. `first` is the process of the first engine, if it was begun.
        """
        self.info: EngineInfo | None = None
        self.traffic: TrafficLog | None = None  # takes note of every request
        self.kv_events: KVEvents | None = None  # told which blocks are cached
        self.on_ready: Callable[[], None] = lambda: None  # called for each engine that is ready
        self.live_settings = LiveSettings(settings)
        self.pins = KeptPins()
        self._on_stats = on_stats
        self._on_restart = on_restart
        self._on_resume = on_resume
        self._stats = EngineStats()
        self._streams = Streams()
        self._backlog = Backlog()
        self._overload = Overload()
        self._gate = Gate()
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[Configured]] = set()
        self._closing: str | None = None  # draining or stopped
        self._supervisor = Supervisor(
            lambda: Start(settings, model, self.adapters.sources),
            settings,
            self._handle,
            lambda: self._gate.num_inside > 0,
            self._take_death,
            first,
        )
        self._questions = Questions(lambda asked: self._supervisor.send(asked))
        self.adapters = Adapters(
            sources_of(settings.lora), self._questions.ask, self._note_adapters
        )
        self._supervision: asyncio.Task[None] | None = None
        self._loaded: asyncio.Future[EngineInfo] | None = None

    @property
    def stats(self) -> EngineStats:
        """See `EngineClient.stats`. Requests that wait outside the engine are counted with those in
        its queue.
        """
        waiting = self._stats.value(WAITING) + self._gate.num_outside
        numbers = self._stats.numbers | {WAITING.key(): waiting}
        return EngineStats(numbers=numbers, observed=self._stats.observed)

    @property
    def unready_reason(self) -> str | None:
        """See `EngineClient.unready_reason`."""
        if self._closing is not None:
            return self._closing
        if self._supervisor.is_up:
            patience = _STALLED_SHARE * self.live_settings.settings.hang_seconds
            return "stalled" if self._supervisor.silent_seconds >= patience else None
        if self.info is None:
            return "loading"
        return "failing" if self._supervisor.is_failing else "restarting"

    @property
    def refusal_reason(self) -> str | None:
        """See `EngineClient.refusal_reason`."""
        reason = self.unready_reason
        return None if reason in ("restarting", "stalled") else reason

    @property
    def pid(self) -> int | None:
        """The process id of the engine; None while there is none."""
        return self._supervisor.pid

    @property
    def spare_pid(self) -> int | None:
        """The process id of a spare engine that could take over; None if there is none."""
        return self._supervisor.spare_pid

    # life

    async def start(self) -> EngineInfo:
        """Start the engine and wait until its model is loaded.

        Raises:
            StartupError: the engine refused to start; gives the reason.
        """
        self._loaded = asyncio.get_running_loop().create_future()
        self._supervision = asyncio.create_task(self._supervisor.run())
        self._supervision.add_done_callback(self._supervision_ended)
        return await self._loaded

    def _supervision_ended(self, supervision: asyncio.Task[None]) -> None:
        if self._loaded is not None and not self._loaded.done() and not supervision.cancelled():
            self._loaded.set_exception(
                supervision.exception() or StartupError("the engine was not started")
            )

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, wait for the live ones, and abort those that are left after
        `seconds`.
        """
        self._closing = "draining"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._streams.idle.wait(), seconds)
        self._end_all(_SHUTTING_DOWN)

    async def stop(self) -> None:
        """End the engine process; live requests end with "abort"."""
        self._closing = "stopped"
        self._questions.close(_SHUTTING_DOWN)
        self._end_all(_SHUTTING_DOWN)
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.wait([self._supervision])

    # calls of the supervisor

    def _handle(self, message: FromEngine) -> None:
        if isinstance(message, Ready):
            self._take_ready(message.info)
        elif isinstance(message, Answered):
            self._questions.take(message)
        elif isinstance(message, PinChanges):
            self.pins.note(message)
        elif isinstance(message, BlockChanges):
            if self.kv_events is not None:
                self.kv_events.take(message)
        else:
            self._take_report(message)
        self._admit()

    def _take_ready(self, info: EngineInfo) -> None:
        is_first = self.info is None
        self.info = self.live_settings.take_engine(info)
        self.adapters.take_engine(info.adapters)
        info = self.info
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(info)
        if (changed := self.live_settings.for_engine()) is not None:
            self._supervisor.send(Asked(0, changed))
        for pin in [RestorePins()] if is_first else self.pins.again():
            self._supervisor.send(Asked(0, pin))  # nobody waits for the answer
        self._questions.engine_is_ready()
        self.on_ready()

    def _note_adapters(self) -> None:
        """Adapters have come or gone, which share the budget with K/V."""
        self.live_settings.adapter_bytes = self.adapters.num_bytes
        if self.info is not None:
            self.info = self.live_settings.info_now()

    def _take_report(self, report: Report) -> None:
        if report.stats is not None:
            self._stats = report.stats
            self._backlog.report(report.stats)
            self._on_stats(report.stats)
        for event in report.events:
            self._take_event(event)

    def _take_event(self, event: TokenEvent) -> None:
        if event.token_ids:
            self._gate.progress(event.request_id)
        if event.finish is not None:
            self._gate.end(event.request_id)
        stream = self._streams.get(event.request_id)
        if stream is not None:
            self._streams.push(stream, event)
            if event.finish is not None:
                self._streams.remove(stream)
                self._backlog.ended(others_wait=bool(self._streams.waiting))

    def _take_death(self, cause: Cause) -> None:
        """The engine has died. Its requests wait for the next one, except the one that killed it
        twice, which ends with an error.
        """
        self._on_restart(cause)
        self._stats = EngineStats()
        if self.kv_events is not None:
            self.kv_events.clear()
        self._questions.engine_died()
        killer = self._streams.get(self._gate.died() or "")
        if killer is not None:
            self._end(killer, "error", _KILLED_TWICE)
        if self._supervisor.is_failing:
            self._end_all(_DOES_NOT_START)
            self._questions.close(_DOES_NOT_START)

    # requests

    def submit(self, stream: Stream) -> None:
        """See `EngineClient.submit`."""
        self._refuse_if_unavailable(stream)
        self._streams.add(stream)
        self._backlog.sent(len(stream.request.prompt_ids))
        stream.accept(self._leave)
        if self.traffic is not None:
            self.traffic.arrived(stream.request)
        self._gate.arrive(stream.request.id)
        self._admit()

    def _leave(self, stream: Stream) -> None:
        """The reader of `stream` is gone; abort the request if it still runs."""
        if self.traffic is not None:
            self.traffic.ended(stream.request.id, stream.num_generated)
        if stream in self._streams:
            self._withdraw(stream)
            self._admit()

    def _admit(self) -> None:
        """Send the engine the requests that may enter now. Without an engine all of them wait."""
        for request_id in self._gate.admit() if self._supervisor.is_up else ():
            stream = self._streams.get(request_id)
            assert stream is not None, "a request that waits outside has not ended"
            if stream.submitted:
                stream.resumed_at.append(time.monotonic())
                self._on_resume()
            stream.submitted = True
            self._supervisor.send(
                msgspec.structs.replace(stream.request, output_ids=stream.output_ids)
            )

    def _end_all(self, reason: str) -> None:
        for stream in self._streams:
            self._end(stream, "abort", reason)

    def _end(self, stream: Stream, finish: FinishReason, error: str | None = None) -> None:
        """End `stream` now, without waiting for the engine."""
        self._withdraw(stream)
        stream.push(TokenEvent(request_id=stream.request.id, finish=finish, error=error))

    def _withdraw(self, stream: Stream) -> None:
        self._streams.remove(stream)
        if self._gate.withdraw(stream.request.id):
            self._supervisor.send(Abort(stream.request.id))

    async def ask(self, question: Question[T]) -> T:
        """See `EngineClient.ask`."""
        try:
            return await self._questions.ask(question)
        except Unavailable:
            has_no_engine = self._closing is None and not self._supervisor.is_up
            if isinstance(question, Drop) and has_no_engine and self._questions.keep(question):
                return cast(T, self._dropped_later)
            raise

    @property
    def _dropped_later(self) -> Dropped:
        """The answer to a drop that the next engine makes: only the disk has anything to drop."""
        has_disk = self.live_settings.settings.disk_path is not None
        return Dropped(pending=[DISK] if has_disk else [])

    async def configure(self, changes: dict[str, Any], who: str, why: str) -> Configured:
        """See `EngineClient.configure`."""
        values = self.live_settings.checked(changes)
        if len(self._changes) >= MAX_WAITING:
            raise Unavailable("Too many changes of settings wait for the engine.")
        task = asyncio.create_task(self._configure(values, who, why))
        self._changes.add(task)
        task.add_done_callback(self._change_ended)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await asyncio.shield(task)
        except TimeoutError:
            raise Unavailable(_CHANGES_LATER) from None

    def _change_ended(self, task: asyncio.Task[Configured]) -> None:
        self._changes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a change of settings was not made: %s", error)

    async def _configure(self, values: dict[str, Value], who: str, why: str) -> Configured:
        async with self._changing:
            question = self.live_settings.for_engine(values)
            described = self.live_settings.described(values)
            answer = Configured()
            if question is not None:  # however late the answer is, the change is made
                answer = await self._questions.ask(question, None)
            self.live_settings.take(values, who, why)
            if self.info is not None:
                self.info = self.live_settings.info_now()
        did = ", ".join(
            f"{n:,} tokens evicted ({tier})" for tier, n in answer.evicted_tokens.items()
        )
        log.info("%s changed %s; why: %s%s", who, described, why or "not said", did and "; " + did)
        return answer

    # refusal

    def _refuse_if_unavailable(self, stream: Stream) -> None:
        reason = self.refusal_reason
        if reason is not None:
            raise Unavailable(
                f"the server takes no requests now: {reason}",
                code="server_not_ready",
                retry_after=retry_after(self._backlog.seconds(self._streams.waiting.total())),
            )
        waiting, tenant = self._streams.waiting, stream.request.tenant
        ahead = self._backlog.ahead(tenant, waiting)
        expires = math.inf if stream.deadline is None else stream.deadline
        if ahead.requests and time.monotonic() + ahead.seconds > expires:
            raise Unavailable(
                f"the request would wait for {ahead.seconds:.0f} seconds, longer than its time",
                code="request_timeout",
                retry_after=retry_after(ahead.seconds),
            )
        limits = self.live_settings.settings
        reason = self._overload.refusal(tenant, ahead, waiting, limits)
        if reason is not None:
            raise Unavailable(f"{reason}; try again later", retry_after=retry_after(ahead.seconds))

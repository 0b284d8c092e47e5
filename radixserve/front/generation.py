"""Runs one validated body: all of its streams at the same time, to the end.

The same code serves every endpoint and every dialect, streamed or not; only the sink differs.
However a generation ends, none of its requests keeps running in the engine, and there is exactly
one record of it for the metrics and one line in the log. Knows no HTTP and no JSON.

Outcomes: stop, length and tool_calls (of the first choice); rejected: refused before the engine
accepted it; abort: the client disconnected; error: the server could not finish an accepted request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from radixserve import tiers
from radixserve.errors import ApiError, Unavailable
from radixserve.front.protocol import EngineClient
from radixserve.front.stream import Delta, Stream, joined
from radixserve.metrics import RequestRecord
from radixserve.step import PinOutcome, PinStatus
from radixserve.tenants import DEFAULT
from radixserve.text.conversation import Conversation

log = logging.getLogger("radixserve.api")

Sink = Callable[[Stream, Delta], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of a generation. Each prompt counts once, with the cached tokens of its first choice;
    generated tokens are those of all choices.
    """

    prompt: int
    cached: int
    cached_below: dict[str, int]  # of the cached ones, by the tier that they came from
    generated: int
    reasoning: int  # of the generated ones
    pins: tuple[PinOutcome, ...] = ()  # of the wishes of all prompts
    pinned: int = 0  # tokens: of each prompt those of its longest pin

    @property
    def pin_status(self) -> PinStatus:
        """What became of the wishes, of which there are some, together."""
        found = {each.status for each in self.pins}
        return found.pop() if len(found) == 1 else "clipped"

    def cached_in(self) -> dict[str, int]:
        """Where the cached tokens were when the request arrived: every tier, the device first."""
        below = {name: self.cached_below.get(name, 0) for name in tiers.NAMES}
        return {tiers.DEVICE: self.cached - sum(below.values()), **below}


@dataclass(slots=True)
class Generation:
    """A validated body: its streams, and how its answer is to be rendered.

    Stream i is choice `i % num_choices` of prompt `i // num_choices`.
    """

    endpoint: str
    id: str
    streams: list[Stream]
    num_choices: int = 1
    streamed: bool = False
    include_usage: bool = False
    continuous_usage: bool = False  # every chunk carries the usage so far
    logprobs: int | None = None
    adapter: str = ""  # the name of the adapter that computes it; "": none does
    conversation: Conversation | None = None  # that the prompt was rendered from
    told: str = ""  # for the log: the sampling parameters, and which of them are defaults
    arrived: float = 0.0  # time.monotonic() seconds
    deadline: float | None = None  # time.monotonic() seconds
    failure: str | None = None
    failure_code: str | None = None  # of the error's envelope

    def __post_init__(self) -> None:
        for index, stream in enumerate(self.streams):
            stream.index = index

    def counts(self) -> Counts:
        """The tokens so far."""
        firsts = self.streams[:: self.num_choices]
        return Counts(
            prompt=sum(len(stream.request.prompt_ids) for stream in firsts),
            cached=sum(stream.num_cached for stream in firsts),
            cached_below=_summed(stream.cached_below for stream in firsts),
            generated=sum(stream.num_generated for stream in self.streams),
            reasoning=sum(stream.num_reasoning for stream in self.streams),
            pins=tuple(outcome for stream in firsts for outcome in stream.pins),
            pinned=sum(max(each.num_tokens for each in s.pins) for s in firsts if s.pins),
        )

    async def run(self, engine: EngineClient, sink: Sink) -> None:
        """Generate all streams concurrently and give each delta to `sink`; returns when all have a
        finish reason.

        Raises Unavailable if the engine refuses one of them or the deadline passes, ServerError or
        Unavailable if one fails, and any exception of the sink. In every case, cancellation
        included, the engine does not work on any of them afterwards.
        """
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise _too_late()
        try:
            async with asyncio.timeout(self._seconds_left()) as limit:
                await self._run(engine, sink)
        except TimeoutError:
            if limit.expired():
                raise _too_late() from None
            raise
        finally:
            for stream in self.streams:
                await stream.aclose()

    def _seconds_left(self) -> float | None:
        return None if self.deadline is None else self.deadline - time.monotonic()

    async def _run(self, engine: EngineClient, sink: Sink) -> None:
        for stream in self.streams:
            stream.deadline = self.deadline
            engine.submit(stream)
        if len(self.streams) == 1:
            await _consume(self.streams[0], sink)
        else:
            await _consume_all(self.streams, sink)

    async def collect(self, engine: EngineClient) -> list[Delta]:
        """Generate all streams as `run` does; returns the whole answer of each."""
        answers = [Delta() for _ in self.streams]

        async def sink(stream: Stream, delta: Delta) -> None:
            answers[stream.index].add(delta)

        await self.run(engine, sink)
        for answer in answers:
            answer.parts = joined(answer.parts)
        return answers

    def fail(self, error: BaseException) -> None:
        """Record the failure that ended the generation; the first one counts."""
        if self.failure is None:
            self.failure = outcome_of(error, self.streams)
            self.failure_code = getattr(error, "code", None)

    def close(self) -> RequestRecord:
        """Log the generation's line and return its record for the metrics. A refused one is not
        logged here, because its error has been.
        """
        record = self._record()
        if record.outcome != "rejected":
            log.info(
                "%s %s %s %sprompt=%d cached=%d generated=%d ttft=%s e2e=%.3fs %s",
                record.endpoint,
                self.id,
                record.outcome,
                self._owner(),
                record.prompt_tokens,
                record.cached_tokens,
                record.generated_tokens,
                "-" if record.ttft_seconds is None else f"{record.ttft_seconds:.3f}s",
                time.monotonic() - self.arrived,
                self.told,
            )
        return record

    def _owner(self) -> str:
        """The tenant, for the log; nothing on a server without tenants."""
        name = self.streams[0].request.tenant
        return "" if name == DEFAULT.name else f"tenant={name} "

    def _record(self) -> RequestRecord:
        accepted = [stream for stream in self.streams if stream.accepted]
        outcome = self.failure or self.streams[0].finish_reason or "error"
        if not accepted:
            return RequestRecord(self.endpoint, outcome)
        counts = self.counts()
        firsts = [stream.first_token_at for stream in accepted if stream.first_token_at is not None]
        return RequestRecord(
            self.endpoint,
            outcome,
            prompt_tokens=counts.prompt,
            cached_tokens=counts.cached,
            generated_tokens=counts.generated,
            queue_seconds=accepted[0].queue_seconds,
            ttft_seconds=min(firsts) - self.arrived if firsts else None,
            e2e_seconds=time.monotonic() - self.arrived,
            inter_token_seconds=[gap for stream in accepted for gap in stream.inter_token_seconds],
        )


def _summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def outcome_of(error: BaseException, streams: Iterable[Stream] = ()) -> str:
    """The outcome of a body whose handling ended with `error`."""
    if isinstance(error, (asyncio.CancelledError, ConnectionError)):
        return "abort"
    if isinstance(error, ApiError) and not any(stream.accepted for stream in streams):
        return "rejected"
    return "error"


def _too_late() -> Unavailable:
    return Unavailable("The request was not completed in its time.", code="request_timeout")


async def _consume(stream: Stream, sink: Sink) -> None:
    """Read `stream` to its finish reason, which its last event always has."""
    async for event in stream:
        delta = stream.take(event)
        if delta is not None:
            await sink(stream, delta)
        if stream.finish_reason is not None:
            await stream.aclose()  # at once, because other choices may run for long
            return


async def _consume_all(streams: list[Stream], sink: Sink) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for stream in streams:
                group.create_task(_consume(stream, sink))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None

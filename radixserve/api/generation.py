"""Runs validated requests: engine events become text, logprobs and counts, choice by choice.

The same code serves chat and completions, streamed or not; only renderer and sink differ. Owns stop
strings, finish reasons and usage. However a generation ends, none of its requests keeps running in
the engine. Knows no HTTP and no JSON.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from radixserve.api.answers import CachedTokensDetails, PromptTokensDetails, Usage
from radixserve.errors import ServerError, Unavailable
from radixserve.front.protocol import EngineClient, EventStream
from radixserve.request import Request
from radixserve.step import TokenEvent, TokenLogprob

if TYPE_CHECKING:
    from radixserve.text.stream import TextStream


@dataclass(slots=True)
class Delta:
    """The addition of one event to a choice. `logprobs` and `offsets` have one entry per counted
    token, a stop token included.
    """

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)  # characters of the answer before the token
    prompt_logprobs: list[TokenLogprob] | None = None


@dataclass(slots=True)
class Choice:
    """One sequence while it is sent to the client."""

    index: int
    request: Request
    text_stream: TextStream
    echo_text: str = ""
    prompt_only: bool = False  # max_tokens is 0: the token that the engine draws is left out
    accepted: bool = False
    finish_reason: str | None = None
    num_generated: int = 0  # a stop token and the token that completed a stop string included
    num_cached: int = 0
    num_host: int = 0  # of num_cached
    num_disk: int = 0
    queue_seconds: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    inter_token_seconds: list[float] = field(default_factory=list)
    whole: Delta = field(default_factory=Delta)  # filled by `collect`

    def take(self, event: TokenEvent) -> Delta | None:
        """The addition of `event`; None if nothing is to be sent. Raises ServerError or Unavailable
        for a failure.
        """
        if event.num_cached is not None:
            self.num_cached, self.num_host, self.num_disk = (
                event.num_cached,
                event.num_host,
                event.num_disk,
            )
            self.queue_seconds = event.queue_seconds
        if event.finish == "error":
            raise ServerError(
                event.error or "The request failed inside the server.", code="generation_failed"
            )
        if event.finish == "abort":
            reason = event.error or "the server ended the request"
            raise Unavailable(f"Not completed: {reason}. Try again.", code="generation_aborted")
        delta = Delta()
        if event.token_ids:
            if self.first_token_at is None and self.request.sampling.prompt_logprobs is not None:
                delta.prompt_logprobs = event.prompt_logprobs or []
            delta.text = self._take_tokens(event, delta)
        if self.finish_reason is None and event.finish is not None:
            delta.text += self.text_stream.finish()
            self.finish_reason = self._finish_reason(event.finish)
        shown = (
            delta.text or delta.logprobs or delta.prompt_logprobs is not None or self.finish_reason
        )
        return delta if shown else None

    def collect(self, delta: Delta) -> None:
        """Keep `delta` for an answer that is sent whole."""
        self.whole.text += delta.text
        self.whole.logprobs += delta.logprobs
        self.whole.offsets += delta.offsets
        if delta.prompt_logprobs is not None:
            self.whole.prompt_logprobs = delta.prompt_logprobs

    def _take_tokens(self, event: TokenEvent, delta: Delta) -> str:
        """Count the event's tokens and return their text; tokens after a stop string do not
        count.
        """
        echo = self.echo_text if self.first_token_at is None else ""
        self._note_time()
        if self.prompt_only:
            return echo
        stream, num_before = self.text_stream, self.text_stream.num_tokens
        num_shown = len(event.token_ids) - (event.stop_token_id is not None)
        text = echo + stream.push(event.token_ids[:num_shown])
        has_stop_token = stream.stopped is None and event.stop_token_id is not None
        self.num_generated = stream.num_tokens + has_stop_token
        if event.logprobs is not None:
            delta.logprobs = event.logprobs[: self.num_generated - num_before]
            delta.offsets = stream.offsets[num_before:] + [stream.num_chars] * has_stop_token
        if stream.stopped is not None:
            self.finish_reason = "stop"
        return text

    def _finish_reason(self, finish: str) -> str:
        """The client's finish reason for the engine's reason `finish`."""
        if self.prompt_only:
            return "length"
        return "stop" if self.text_stream.stopped is not None else finish

    def _note_time(self) -> None:
        now = time.monotonic()
        if self.last_token_at is None:
            self.first_token_at = now
        else:
            self.inter_token_seconds.append(now - self.last_token_at)
        self.last_token_at = now


Sink = Callable[[Choice, Delta], Awaitable[None]]


async def run(engine: EngineClient, choices: list[Choice], sink: Sink) -> None:
    """Generate all choices concurrently and give each delta to `sink`; returns when all have a
    finish reason.

    Raises Unavailable if the engine refuses one of them, ServerError or Unavailable if one fails,
    and any exception of the sink. In every case, cancellation included, the engine does not work on
    any of them afterwards.
    """
    streams: list[EventStream] = []
    try:
        for choice in choices:
            streams.append(engine.submit(choice.request))
            choice.accepted = True
        if len(choices) == 1:
            await _consume(choices[0], streams[0], sink)
        else:
            await _consume_all(choices, streams, sink)
    finally:
        for stream in streams:
            await stream.aclose()


def usage_of(choices: list[Choice], num_choices: int) -> Usage:
    """Counts each prompt once, with the cached tokens of its first choice, and the generated tokens
    of all choices.
    """
    firsts = choices[::num_choices]
    num_prompt = sum(len(choice.request.prompt_ids) for choice in firsts)
    num_generated = sum(choice.num_generated for choice in choices)
    return Usage(num_prompt, num_generated, num_prompt + num_generated, _cached(firsts))


def _cached(choices: list[Choice]) -> PromptTokensDetails:
    cached = sum(choice.num_cached for choice in choices)
    host, disk = (
        sum(choice.num_host for choice in choices),
        sum(choice.num_disk for choice in choices),
    )
    return PromptTokensDetails(cached, CachedTokensDetails(cached - host - disk, host, disk))


async def _consume(choice: Choice, events: EventStream, sink: Sink) -> None:
    async for event in events:
        delta = choice.take(event)
        if delta is not None:
            await sink(choice, delta)
        if choice.finish_reason is not None:
            await events.aclose()  # at once, because other choices may run for long
            return
    raise ServerError("The engine ended the request without a result.", code="generation_failed")


async def _consume_all(choices: list[Choice], streams: list[EventStream], sink: Sink) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for choice, events in zip(choices, streams, strict=True):
                group.create_task(_consume(choice, events, sink))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None

"""One request in the front, from its submission to the end of its answer.

The engine's client pushes events into a `Stream`; a handler iterates over it and turns each event
into a `Delta` of text, calls and logprobs. Prompt and tokens are kept, so that another engine can
continue where a dead one stopped. Owns stop strings, finish reasons and the counts of one answer.
Knows no process, no HTTP and no JSON.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING

from radixserve.errors import BadRequest, ServerError, Unavailable
from radixserve.parsing.parts import CallBegun, CallEnded, Part, Reasoning, Text
from radixserve.request import Request
from radixserve.step import PinOutcome, TierLoad, TokenEvent, TokenLogprob

if TYPE_CHECKING:
    from radixserve.parsing.parser import Parser
    from radixserve.text.stream import TextStream


@dataclass(slots=True)
class Delta:
    """An addition to an answer. `logprobs` and `offsets` have one entry per counted token, a stop
    token included.
    """

    parts: list[Part] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)  # characters of the answer before the token
    token_ids: list[int] = field(default_factory=list)  # the counted tokens
    prompt_logprobs: list[TokenLogprob] | None = None

    @property
    def text(self) -> str:
        """The text, without reasoning and calls."""
        return "".join([part.text for part in self.parts if isinstance(part, Text)])

    @property
    def reasoning(self) -> str:
        """The text of the reasoning."""
        return "".join([part.text for part in self.parts if isinstance(part, Reasoning)])

    def add(self, other: Delta) -> None:
        """Append `other`, in time of its own size; `joined` joins the parts in the end."""
        self.parts += other.parts
        self.logprobs += other.logprobs
        self.offsets += other.offsets
        self.token_ids += other.token_ids
        if other.prompt_logprobs is not None:
            self.prompt_logprobs = other.prompt_logprobs


class Stream:
    """A request, what has arrived of its answer, and what its reader has not fetched yet.

    Iterating over it yields `TokenEvent`s and ends after the one whose `finish` is set; `take`
    turns each into a `Delta`. The reader has to call `aclose` in every case, also if it has read
    nothing.

    Attributes:
        finish_reason: "stop", "length" or "tool_calls" once the answer is complete.
        num_generated: counted tokens; a stop token and the token that completed a stop string
            included.
        num_cached: prompt tokens that were not computed; `cached_below` of them came from the tiers
            below the device.
    """

    def __init__(
        self,
        request: Request,
        text: TextStream | None = None,
        *,
        parser: Parser | None = None,
        in_reasoning: bool = False,
        echo: str = "",
        prompt_only: bool = False,
    ) -> None:
        """`text` is None where only tokens are wanted. `parser` finds reasoning and calls in the
        text, which begins within the reasoning if `in_reasoning`. `echo` is put before the answer.
        With `prompt_only` the token that the engine draws is left out.
        """
        self.request, self.text = request, text
        self.index = 0  # among the streams of its generation
        self.deadline: float | None = None  # time.monotonic() seconds
        self.echo, self.prompt_only = echo, prompt_only
        self.output_ids: list[int] = []
        self.started = False  # something has arrived
        self.submitted = False  # to any engine, which may have died since
        self.accepted = False  # by the engine's client
        self.finish_reason: str | None = None
        self.matched_stop: str | int | None = None  # the stop string or token that ended it
        self.num_generated = self.num_cached = 0
        self.cached_below: dict[str, int] = {}
        self.queue_seconds: float | None = None
        self.lookup_seconds = 0.0
        self.loads: tuple[TierLoad, ...] = ()
        self.preempted_at: list[float] = []  # time.monotonic() seconds
        self.resumed_at: list[float] = []  # by another engine; time.monotonic() seconds
        self.pins: tuple[PinOutcome, ...] = ()  # of the request's wishes
        self.text_seconds = 0.0  # spent in `take`
        self.first_token_at: float | None = None  # time.monotonic() seconds
        self.last_token_at: float | None = None
        self.inter_token_seconds: list[float] = []
        self.num_reasoning = 0  # of the generated tokens
        self.has_calls = False
        self._in_reasoning = in_reasoning
        self._parser = parser
        self._pending: TokenEvent | None = None  # events not fetched yet, merged into one
        self._arrived = asyncio.Event()
        self._ended = False
        self._leave: Callable[[Stream], None] | None = None

    # the engine's side

    def accept(self, leave: Callable[[Stream], None]) -> None:
        """An engine's client takes the request; `leave` is called when the reader is done."""
        self.accepted, self._leave = True, leave

    def push(self, event: TokenEvent) -> None:
        """Add an event. Events that the reader has not fetched are merged into one, so what waits
        here stays small.
        """
        self.started = True
        self.output_ids += event.token_ids
        self._pending = event if self._pending is None else _merged(self._pending, event)
        self._arrived.set()

    @property
    def is_waiting(self) -> bool:
        """Whether the reader has fetched everything that has arrived."""
        return self._pending is None

    # the reader's side

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> TokenEvent:
        """Everything that arrived since the last call; waits until there is something."""
        if self._ended:
            raise StopAsyncIteration
        await self._arrived.wait()
        self._arrived.clear()
        event, self._pending = self._pending, None
        assert event is not None, "woken without an event"
        self._ended = event.finish is not None
        return event

    async def aclose(self) -> None:
        """Abort the request in the engine if it still runs."""
        self._ended = True
        if self._leave is not None:
            self._leave(self)

    def take(self, event: TokenEvent) -> Delta | None:
        """The addition of `event`; None if nothing is to be sent. Raises BadRequest, ServerError or
        Unavailable for a failure.
        """
        begun = time.monotonic()
        try:
            return self._take(event, begun)
        finally:
            self.text_seconds += time.monotonic() - begun

    def _take(self, event: TokenEvent, now: float) -> Delta | None:
        self._take_counts(event)
        _raise_failure(event)
        delta = Delta()
        if event.token_ids:
            self._take_tokens(event, delta, now)
        if self.finish_reason is None and event.finish is not None:
            self.finish_reason = self._finish(event, delta)
        has_content = delta.parts or delta.logprobs or delta.token_ids
        shown = has_content or delta.prompt_logprobs is not None or self.finish_reason
        return delta if shown else None

    def _take_counts(self, event: TokenEvent) -> None:
        if event.num_cached is not None:
            self.num_cached = event.num_cached
            self.cached_below = event.cached_below
            self.queue_seconds = event.queue_seconds
            self.lookup_seconds, self.loads = event.lookup_seconds, event.loads
            self.pins = event.pins
        self.preempted_at += [self.request.arrived + seconds for seconds in event.preempted]

    def _take_tokens(self, event: TokenEvent, delta: Delta, now: float) -> None:
        """Count the event's tokens and add their text; tokens after a stop string do not count."""
        if self.first_token_at is None:
            if self.request.sampling.prompt_logprobs is not None:
                delta.prompt_logprobs = event.prompt_logprobs or []
            self._show(self.echo, delta)
        self._note_time(now)
        if self.prompt_only:
            return
        assert self.text is not None, "only tokens are wanted"
        text, num_before = self.text, self.text.num_tokens
        num_shown = len(event.token_ids) - (event.stop_token_id is not None)
        if self._parser is None:
            self._show(text.push(event.token_ids[:num_shown]), delta)
        else:
            self._parse_tokens(text, event.token_ids[:num_shown], delta)
        has_stop_token = text.stopped is None and event.stop_token_id is not None
        self.num_generated = text.num_tokens + has_stop_token
        delta.token_ids = event.token_ids[: self.num_generated - num_before]
        if event.logprobs is not None:
            delta.logprobs = event.logprobs[: self.num_generated - num_before]
            delta.offsets = text.offsets[num_before:] + [text.num_chars] * has_stop_token
        if text.stopped is not None:
            self._flush(delta)
            self.matched_stop = text.stopped
            self.finish_reason = self._reason("stop")

    def _finish(self, event: TokenEvent, delta: Delta) -> str:
        """End the text and return the client's finish reason."""
        if self.text is not None:
            self._parse(self.text.finish(), delta)
        self._flush(delta)
        if self.prompt_only:
            return "length"
        if self.text is not None and self.text.stopped is not None:
            self.matched_stop = self.text.stopped
            return self._reason("stop")
        self.matched_stop = event.stop_token_id
        return self._reason(event.finish or "stop")

    def _reason(self, reason: str) -> str:
        return "tool_calls" if reason == "stop" and self.has_calls else reason

    def _parse_tokens(self, text: TextStream, token_ids: list[int], delta: Delta) -> None:
        """Parse token by token, so that those of the reasoning are counted exactly."""
        for token_id in token_ids:
            if text.stopped is None:
                self.num_reasoning += self._in_reasoning
                self._parse(text.push([token_id]), delta)

    def _parse(self, text: str, delta: Delta) -> None:
        if self._parser is None:
            self._show(text, delta)
        elif text:
            self._add(self._parser.push(text), delta)

    def _flush(self, delta: Delta) -> None:
        if self._parser is not None:
            self._add(self._parser.finish(), delta)

    def _show(self, text: str, delta: Delta) -> None:
        if text:
            delta.parts.append(Text(text))

    def _add(self, parts: list[Part], delta: Delta) -> None:
        for part in parts:
            self.has_calls = self.has_calls or isinstance(part, CallBegun)
            self._in_reasoning = isinstance(part, Reasoning)
        delta.parts += parts

    def _note_time(self, now: float) -> None:
        if self.last_token_at is None:
            self.first_token_at = now
        else:
            self.inter_token_seconds.append(now - self.last_token_at)
        self.last_token_at = now


def joined(parts: Iterable[Part]) -> list[Part]:
    """`parts` with consecutive pieces of one text or of one call's arguments made one. Takes time
    of the number of parts and of their text.
    """
    whole: list[Part] = []
    for _, same in groupby(parts, lambda part: (type(part), getattr(part, "index", None))):
        run = list(same)
        if len(run) == 1 or isinstance(run[0], CallBegun | CallEnded):
            whole += run
        else:
            texts = [part.text for part in run if not isinstance(part, CallBegun | CallEnded)]
            whole.append(replace(run[0], text="".join(texts)))
    return whole


def _raise_failure(event: TokenEvent) -> None:
    """Raise the exception for an event that reports a failure."""
    if event.finish == "refused":
        raise BadRequest(event.error or "The request cannot be completed.", code=event.code)
    if event.finish == "error":
        raise ServerError(
            event.error or "The request failed inside the server.", code="generation_failed"
        )
    if event.finish == "abort":
        reason = event.error or "the server ended the request"
        raise Unavailable(f"Not completed: {reason}. Try again.", code="generation_aborted")


def _merged(first: TokenEvent, then: TokenEvent) -> TokenEvent:
    """Two consecutive events of one request as one event."""
    first.token_ids = first.token_ids + then.token_ids
    if then.logprobs is not None:
        first.logprobs = (first.logprobs or []) + then.logprobs
    first.preempted += then.preempted
    first.finish, first.stop_token_id = then.finish, then.stop_token_id
    first.error, first.code = then.error, then.code
    return first

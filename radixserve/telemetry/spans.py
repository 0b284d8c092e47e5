"""One trace for each request, made when the request has ended.

Everything that a trace shows is known then: the front has noted when events arrived, and the engine
sends its own times with the first token. So a request that runs pays nothing, and one that is not
sampled pays for the decision only. Attributes have the names of OpenTelemetry's conventions for
generative AI where there are some, and begin with `radixserve.` elsewhere. No text of a prompt or
of an answer is in a trace.

    chat MODEL                      from the first byte of the body to the end of the answer
    |- tokenise                     read and check the body, render and tokenise the prompt
    |- queue                        wait for a place among the running requests
    |  |- load host, load disk      copy K/V from a lower tier
    |  `- lookup                    search the prefix tree
    |- prefill                      compute the rest of the prompt, up to the first token
    |- decode                       all further tokens
    `- detokenise                   turn tokens into text and typed parts, beside `decode`

The span of the whole request has an event for each time that it was preempted, and for each time
that another engine went on with it after the death of one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from radixserve import __version__
from radixserve.front.generation import Generation
from radixserve.front.stream import Stream
from radixserve.metrics import RequestRecord
from radixserve.telemetry.asked import Asked

_OPERATIONS: Final = {"completions": "text_completion"}  # all others are "chat"
_MOST_CHOICES: Final = 8  # choices of one request that get spans of their own
_FAILED: Final = ("error", "rejected")


class Traces:
    """Makes traces and hands them to `provider`. Never waits: what the provider cannot send is
    dropped.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("radixserve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def refused(self, asked: Asked, outcome: str, code: str | None) -> None:
        """Trace a request that ended before it became a generation."""
        clock = _Clock()
        root = self._root(asked, clock)
        if root.is_recording():
            root.set_attribute("radixserve.outcome", outcome)
            _set_failure(root, outcome, code)
        root.end(clock.now)

    def answered(self, asked: Asked, generation: Generation, record: RequestRecord) -> None:
        """Trace a generation that has ended, with the record of its `close`."""
        clock = _Clock()
        root = self._root(asked, clock)
        if root.is_recording():
            root.set_attributes(_described(generation, record))
            _set_failure(root, record.outcome, generation.failure_code)
            self._add_parts(root, asked.arrived, generation, clock)
        root.end(clock.now)

    def _root(self, asked: Asked, clock: _Clock) -> Span:
        """The span of the whole request, which continues the client's trace if it sent one."""
        operation = _OPERATIONS.get(asked.endpoint, "chat")
        return self._tracer.start_span(
            f"{operation} {asked.model}",
            self._propagator.extract(asked.headers),
            SpanKind.SERVER,
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "radixserve",
                "gen_ai.response.model": asked.model,
                "radixserve.endpoint": asked.endpoint,
                "radixserve.request_id": asked.request_id,
            },
            start_time=clock.at(asked.arrived),
        )

    def _add_parts(self, root: Span, arrived: float, generation: Generation, clock: _Clock) -> None:
        context = set_span_in_context(root)
        submitted = generation.streams[0].request.arrived
        self._add(context, "tokenise", clock.at(arrived), clock.at(submitted))
        for stream in generation.streams[:_MOST_CHOICES]:
            if stream.accepted:
                self._add_stream(context, stream, clock)
                _add_events(root, stream, clock)

    def _add_stream(self, context: Context, stream: Stream, clock: _Clock) -> None:
        choice = {"radixserve.choice": stream.index}
        submitted, first = stream.request.arrived, stream.first_token_at
        if first is None or stream.queue_seconds is None:
            self._add(context, "unanswered", clock.at(submitted), clock.now, choice)
            return
        admitted = min(submitted + stream.queue_seconds, first)
        self._add_queue(context, stream, submitted, admitted, clock)
        computed = len(stream.request.prompt_ids) - stream.num_cached
        counts = {**choice, "radixserve.computed_tokens": computed}
        self._add(context, "prefill", clock.at(admitted), clock.at(first), counts)
        last = stream.last_token_at or first
        tokens = {**choice, "gen_ai.usage.output_tokens": stream.num_generated}
        self._add(context, "decode", clock.at(first), clock.at(last), tokens)
        busy = {**choice, "radixserve.busy_seconds": stream.text_seconds}
        self._add(context, "detokenise", clock.at(first), clock.now, busy)

    def _add_queue(
        self, context: Context, stream: Stream, submitted: float, admitted: float, clock: _Clock
    ) -> None:
        """The wait in the engine, and what it did meanwhile for this request."""
        choice = {"radixserve.choice": stream.index}
        queue = self._tracer.start_span(
            "queue", context, attributes=choice, start_time=clock.at(submitted)
        )
        inner = set_span_in_context(queue)
        for load in stream.loads:
            start = submitted + load.start_seconds
            loaded: dict[str, AttributeValue] = {**choice, "radixserve.tokens": load.num_tokens}
            if load.given_up is not None:
                loaded["radixserve.given_up"] = load.given_up
            stop = min(start + load.seconds, admitted)
            self._add(inner, f"load {load.tier}", clock.at(start), clock.at(stop), loaded)
        begun = max(submitted, admitted - stream.lookup_seconds)
        self._add(inner, "lookup", clock.at(begun), clock.at(admitted), choice)
        queue.end(clock.at(admitted))

    def _add(
        self,
        context: Context,
        name: str,
        start: int,
        stop: int,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> None:
        span = self._tracer.start_span(name, context, attributes=attributes, start_time=start)
        span.end(max(start, stop))


def _add_events(root: Span, stream: Stream, clock: _Clock) -> None:
    """What interrupted a stream; the SDK bounds how many events a span keeps."""
    choice = {"radixserve.choice": stream.index}
    for name, times in (("preempted", stream.preempted_at), ("resumed", stream.resumed_at)):
        for at in times:
            root.add_event(name, choice, clock.at(at))


class _Clock:
    """Wall-clock nanoseconds of times that were measured with time.monotonic()."""

    def __init__(self) -> None:
        self.now = time.time_ns()
        self._offset = self.now - time.monotonic_ns()

    def at(self, seconds: float) -> int:
        return int(seconds * 1e9) + self._offset


def _set_failure(span: Span, outcome: str, code: str | None) -> None:
    if outcome in _FAILED:
        span.set_attribute("error.type", code or outcome)
        span.set_status(Status(StatusCode.ERROR))


def _described(generation: Generation, record: RequestRecord) -> dict[str, Any]:
    """The attributes of a whole request."""
    counts, sampling = generation.counts(), generation.streams[0].request.sampling
    reasons = [each.finish_reason for each in generation.streams if each.finish_reason is not None]
    attributes: dict[str, Any] = {
        "gen_ai.response.id": generation.id,
        "gen_ai.request.stream": generation.streamed,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.usage.input_tokens": counts.prompt,
        "gen_ai.usage.output_tokens": counts.generated,
        "gen_ai.usage.reasoning.output_tokens": counts.reasoning,
        "gen_ai.usage.cache_read.input_tokens": counts.cached,
        "gen_ai.response.finish_reasons": reasons,
        "radixserve.outcome": record.outcome,
        "radixserve.cached_share": counts.cached / counts.prompt if counts.prompt else 0.0,
    }
    tiers = {f"radixserve.cached_tokens.{name}": n for name, n in counts.cached_in().items()}
    return {**attributes, **tiers, **dict(_optional(generation, record))}


def _optional(generation: Generation, record: RequestRecord) -> Iterator[tuple[str, Any]]:
    if len(generation.streams) > 1:
        yield "gen_ai.request.choice.count", len(generation.streams)
    for name in ("preempted", "resumed"):
        times = sum(len(getattr(stream, f"{name}_at")) for stream in generation.streams)
        if times:
            yield f"radixserve.times_{name}", times
    if record.ttft_seconds is not None:
        yield "gen_ai.response.time_to_first_chunk", record.ttft_seconds

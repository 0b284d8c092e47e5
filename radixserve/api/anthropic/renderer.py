"""Renders an answer as a message of the Anthropic dialect, whole or as a stream of named events.
Knows no engine and no HTTP.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from radixserve.api.anthropic.answers import (
    CacheMissReason,
    Content,
    Diagnostics,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    Ping,
    Stop,
)
from radixserve.api.anthropic.content import BlockEvents, blocks_of
from radixserve.api.anthropic.errors import encode_error
from radixserve.api.anthropic.usage import delta_usage_of, last_breakpoint, usage_of
from radixserve.api.anthropic.wire import MessagesBody
from radixserve.api.context import Api
from radixserve.api.sse import event
from radixserve.errors import ApiError
from radixserve.front.generation import Generation
from radixserve.front.stream import Delta, Stream

_END = event(MessageStop(), "message_stop")
_PING = event(Ping(), "ping")


class MessagesRenderer:
    """Builds the bodies of one answer."""

    def __init__(self, api: Api, generation: Generation, body: MessagesBody) -> None:
        self._generation = generation
        self._model = generation.adapter or api.model_name
        self._asked = body
        self._breakpoint = last_breakpoint(body)
        self._shows_thinking = body.thinking is None or body.thinking.display != "omitted"
        self._blocks = BlockEvents(shows_thinking=self._shows_thinking)
        self._begun = False

    def opening(self) -> bytes:
        """See `Renderer`. The first event tells the cached tokens, which are known later."""
        return b""

    def delta(self, stream: Stream, delta: Delta) -> bytes:
        """See `Renderer`."""
        events = [self._blocks.add(part) for part in delta.parts]
        if not self._begun:
            self._begun = True
            events.insert(0, event(MessageStart(self._message([])), "message_start") + _PING)
        return b"".join(events)

    def closing(self) -> bytes:
        """See `Renderer`."""
        usage = delta_usage_of(self._generation.counts(), self._breakpoint)
        delta = MessageDelta(self._stop(), usage)
        return self._blocks.close() + event(delta, "message_delta") + _END

    def failure(self, error: ApiError) -> bytes:
        """See `Renderer`."""
        return b"event: error\ndata: %b\n\n" % encode_error(error)

    def whole(self, answers: list[Delta]) -> bytes:
        """See `Renderer`."""
        message = self._message(blocks_of(answers[0].parts, shows_thinking=self._shows_thinking))
        stop = self._stop()
        message.stop_reason, message.stop_sequence = stop.stop_reason, stop.stop_sequence
        return msgspec.json.encode(message)

    def _message(self, content: list[Content]) -> Message:
        usage = usage_of(self._generation.counts(), self._breakpoint)
        message = Message(f"msg_{self._generation.id}", self._model, content, usage)
        asked = self._asked.diagnostics
        compared = asked is not None and asked.previous_message_id is not None
        message.diagnostics = Diagnostics(CacheMissReason()) if compared else UNSET
        return message

    def _stop(self) -> Stop:
        """Why the answer ended, in the words of the dialect."""
        (stream,) = self._generation.streams
        match stream.finish_reason:
            case "tool_calls":
                return Stop("tool_use", None)
            case "length":
                was_cut = stream.request.sampling.max_tokens < self._asked.max_tokens
                return Stop("model_context_window_exceeded" if was_cut else "max_tokens", None)
        matched = stream.matched_stop
        if isinstance(matched, str):
            return Stop("stop_sequence", matched)
        return Stop("end_turn", None)

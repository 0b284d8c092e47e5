"""Turns the typed parts of an answer into content blocks, whole or as events. Knows no engine and
no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from radixserve.api.anthropic.answers import (
    BlockDelta,
    Content,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    InputJsonDelta,
    SignatureDelta,
    TextContent,
    TextDelta,
    ThinkingContent,
    ThinkingDelta,
    ToolUseContent,
)
from radixserve.api.sse import event
from radixserve.parsing.parts import CallArguments, CallBegun, CallEnded, Part, Reasoning, Text

SIGNATURE: Final = "radixserve"
"""The signature of every thinking block. It proves nothing: reasoning that a client sends back is
taken as it is."""

_NO_INPUT: Final = msgspec.Raw(b"{}")


def blocks_of(parts: Iterable[Part], *, shows_thinking: bool) -> list[Content]:
    """The content of a whole answer; consecutive pieces in `parts` are joined."""
    blocks: list[Content] = []
    for part in parts:
        match part:
            case Text():
                blocks.append(TextContent(part.text))
            case Reasoning():
                blocks.append(ThinkingContent(part.text if shows_thinking else "", SIGNATURE))
            case CallBegun():
                blocks.append(ToolUseContent(part.id, part.name, _NO_INPUT))
            case CallArguments() if isinstance(call := blocks[-1], ToolUseContent):
                call.input = _input_of(part.text)
    return blocks


def _input_of(arguments: str) -> msgspec.Raw:
    """The arguments as a JSON object. Those of a call that was cut are no object; they become the
    text of one member, so that no client runs a tool with half of its arguments.
    """
    try:
        given: Any = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        given = None
    if isinstance(given, dict):
        return msgspec.Raw(arguments.encode())
    return msgspec.Raw(msgspec.json.encode({"INVALID_JSON": arguments}))


class BlockEvents:
    """Writes the events of one answer's content blocks. One block is open at a time."""

    def __init__(self, *, shows_thinking: bool) -> None:
        self._shows_thinking = shows_thinking
        self._open: type[Content] | None = None
        self._text = TextDelta("")
        self._event = ContentBlockDelta(-1, self._text)  # used for every delta

    def add(self, part: Part) -> bytes:
        """The events of a further part."""
        match part:
            case Text():
                opening = b"" if self._open is TextContent else self._next(TextContent(""))
                self._text.text = part.text
                return opening + self._delta(self._text)
            case Reasoning():
                is_open = self._open is ThinkingContent
                opening = b"" if is_open else self._next(ThinkingContent("", ""))
                if not self._shows_thinking:
                    return opening
                return opening + self._delta(ThinkingDelta(part.text))
            case CallBegun():
                return self._next(ToolUseContent(part.id, part.name, _NO_INPUT))
            case CallArguments():
                return self._delta(InputJsonDelta(part.text))
            case CallEnded():
                return self.close()

    def close(self) -> bytes:
        """The events that end the open block, if there is one."""
        if self._open is None:
            return b""
        is_thinking, self._open = self._open is ThinkingContent, None
        signature = self._delta(SignatureDelta(SIGNATURE)) if is_thinking else b""
        return signature + event(ContentBlockStop(self._event.index), "content_block_stop")

    def _next(self, block: Content) -> bytes:
        """The events between the block before and the first delta of `block`."""
        closing, self._open = self.close(), type(block)
        self._event.index += 1
        return closing + event(ContentBlockStart(self._event.index, block), "content_block_start")

    def _delta(self, delta: BlockDelta) -> bytes:
        self._event.delta = delta
        return event(self._event, "content_block_delta")

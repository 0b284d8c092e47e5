"""The parts of an answer as a chat message, and as the deltas of a streamed one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from radixserve.api.openai.answers import (
    CalledFunction,
    ChatDelta,
    ChatMessage,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
)
from radixserve.front.stream import joined
from radixserve.parsing.parts import CallArguments, CallBegun, Part, Reasoning, Text


class MessageWriter:
    """Writes messages. `old_form`: a call is a `function_call`; `with_reasoning`: the reasoning is
    shown.
    """

    def __init__(self, *, old_form: bool, with_reasoning: bool) -> None:
        self._old_form = old_form
        self._with_reasoning = with_reasoning

    def deltas(self, parts: Sequence[Part]) -> Iterator[ChatDelta]:
        """One delta per part, since many clients read one call of a chunk only."""
        for part in joined(parts) if len(parts) > 1 else parts:
            if isinstance(part, Text):
                yield ChatDelta(content=part.text)
            elif isinstance(part, Reasoning):
                if self._with_reasoning:
                    yield ChatDelta(reasoning_content=part.text, reasoning=part.text)
            elif isinstance(part, CallBegun):
                yield self._call_delta(part.index, part.id, FunctionDelta(part.name, ""))
            elif isinstance(part, CallArguments):
                yield self._call_delta(part.index, None, FunctionDelta(arguments=part.text))

    def _call_delta(self, index: int, call_id: str | None, function: FunctionDelta) -> ChatDelta:
        if self._old_form:
            return ChatDelta(function_call=function)
        if call_id is None:
            return ChatDelta(tool_calls=[ToolCallDelta(index, function=function)])
        return ChatDelta(tool_calls=[ToolCallDelta(index, call_id, "function", function)])

    def message(self, parts: Sequence[Part]) -> ChatMessage:
        """The whole message. Its content is null if it has calls and no text."""
        text = "".join([part.text for part in parts if isinstance(part, Text)])
        reasoning = "".join([part.text for part in parts if isinstance(part, Reasoning)])
        calls = _calls(parts)
        message = ChatMessage(text if text or not calls else None)
        if reasoning and self._with_reasoning:
            message.reasoning = message.reasoning_content = reasoning
        if calls and self._old_form:
            message.function_call = calls[0].function
        elif calls:
            message.tool_calls = calls
        return message

    def finish_reason(self, reason: str | None) -> str | None:
        """The client's word for why an answer ended."""
        return "function_call" if self._old_form and reason == "tool_calls" else reason


def _calls(parts: Sequence[Part]) -> list[ToolCall]:
    calls: dict[int, ToolCall] = {}
    for part in parts:
        if isinstance(part, CallBegun):
            calls[part.index] = ToolCall(part.id, CalledFunction(part.name, ""))
        elif isinstance(part, CallArguments):
            calls[part.index].function.arguments += part.text
    return list(calls.values())

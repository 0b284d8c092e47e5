"""Turns the input of a body into chat messages, and remembers which item each one came from.

An assistant's turn is several items here (reasoning, a message, calls) and one message in chat.
Items that only a server with a store or with tools of its own could understand are refused by
name. Checks of roles and contents are those of chat messages, made later.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from radixserve.api.body import convert_member
from radixserve.api.openai.responses.opaque import opened
from radixserve.api.openai.responses.tools import custom_arguments
from radixserve.api.openai.responses.wire import (
    CallOutputItem,
    CustomCallItem,
    FunctionCallItem,
    ItemPart,
    MessageItem,
    ReasoningItem,
    ResponsesBody,
)
from radixserve.api.openai.wire import ContentPart, Message
from radixserve.api.openai.wire_tools import CalledFunction, ToolCall
from radixserve.api.refusals import shown, unsupported
from radixserve.errors import BadRequest

_TEXT = ("input_text", "output_text")
_IN_MESSAGE = re.compile(r"messages\[(\d+)\](?:\.tool_calls(?:\[(\d+)\])?)?(.*)", re.DOTALL)


@dataclass(slots=True)
class Origin:
    """Where the fields of one chat message came from."""

    item: str  # as in "input[2]"
    content: str
    reasoning: str | None = None
    calls: list[str] = field(default_factory=list)


class Conversation:
    """The chat messages of a body so far.

    Attributes:
        messages: for a chat body.
        origins: one `Origin` per message.
    """

    def __init__(self, *, ignore_unknown: bool = False) -> None:
        """`ignore_unknown`: fields of items that are not known are left out, not refused."""
        self.messages: list[Message] = []
        self.origins: list[Origin] = []
        self._convert = partial(convert_member, ignore_unknown=ignore_unknown)

    def add(self, message: Message, item: str, content: str | None = None) -> None:
        """Append a message that came from `item`, its content from `content` of it."""
        self.messages.append(message)
        self.origins.append(Origin(item, content or f"{item}.content"))

    def add_item(self, value: dict[str, Any], item: str) -> None:
        """Append what the item says. Raises BadRequest. Null members are as if absent, because
        clients send back every member that an item might have had.
        """
        value = {name: member for name, member in value.items() if member is not None}
        kind = value.get("type")
        if kind is None and "role" not in value and "id" in value:
            kind = "item_reference"  # its type may be left out
        if kind is not None and not isinstance(kind, str):
            where = f"{item}.type"
            message = f"Invalid value for '{where}': expected a string."
            raise BadRequest(message, param=where, code="invalid_type")
        add = _KINDS.get("message" if kind is None else kind)
        if add is None:
            raise _not_taken(str(kind), f"{item}.type")
        add(self, value, item)

    def turn_starts(self) -> list[int]:
        """The indices of the messages that begin a turn: those of users."""
        return [i for i, message in enumerate(self.messages) if message.role == "user"]

    def starting_at(self, start: int) -> Conversation:
        """The conversation without its turns before message `start`; system messages at its
        beginning are kept.
        """
        num_kept = 0
        while self.messages[num_kept].role in ("system", "developer"):
            num_kept += 1
        rest = Conversation()
        rest.messages = self.messages[:num_kept] + self.messages[start:]
        rest.origins = self.origins[:num_kept] + self.origins[start:]
        return rest

    def source_of(self, param: str) -> str | None:
        """The place in the body that a refusal of the chat messages means; None if it names no
        message.
        """
        match = _IN_MESSAGE.fullmatch(param)
        if match is None or int(match[1]) >= len(self.origins):
            return None
        origin, call, rest = self.origins[int(match[1])], match[2], match[3]
        if ".tool_calls" in param:
            named = rest.replace(".function", "", 1)
            return origin.calls[int(call or 0)] + (".call_id" if named == ".id" else named)
        if rest.startswith(".content"):
            return origin.content + rest.removeprefix(".content")
        if rest.startswith(".reasoning") and origin.reasoning is not None:
            return origin.reasoning
        return origin.item + (".call_id" if rest == ".tool_call_id" else rest)

    def _turn(self, item: str, is_free: Callable[[Message], bool]) -> tuple[Message, Origin]:
        """The assistant's message that the item belongs to: the last one if the item can join it,
        otherwise a new one.
        """
        last = self.messages[-1] if self.messages else None
        if last is None or last.role != "assistant" or not is_free(last):
            self.add(Message(role="assistant"), item)
        return self.messages[-1], self.origins[-1]

    def _add_message(self, value: dict[str, Any], item: str) -> None:
        given = self._convert(value, MessageItem, item)
        content = _content(given.content)
        if given.role != "assistant":
            self.add(Message(role=given.role, content=content), item)
            return
        message, origin = self._turn(
            item, lambda last: last.content is None and not last.tool_calls
        )
        message.content = content
        origin.item, origin.content = item, f"{item}.content"

    def _add_reasoning(self, value: dict[str, Any], item: str) -> None:
        text = _reasoning_text(self._convert(value, ReasoningItem, item), item)
        if not text:
            return  # an item whose reasoning was not shown says nothing
        message, origin = self._turn(item, lambda last: False)
        message.reasoning_content = text
        origin.reasoning = item

    def _add_function_call(self, value: dict[str, Any], item: str) -> None:
        given = self._convert(value, FunctionCallItem, item)
        _refuse_callers(given, item)
        self._add_call(given.call_id, given.name, given.arguments, item)

    def _add_custom_call(self, value: dict[str, Any], item: str) -> None:
        given = self._convert(value, CustomCallItem, item)
        _refuse_callers(given, item)
        self._add_call(given.call_id, given.name, custom_arguments(given.input), item)

    def _add_call(self, call_id: str, name: str, arguments: str, item: str) -> None:
        message, origin = self._turn(item, lambda last: True)
        function = CalledFunction(name=name, arguments=arguments)
        call = ToolCall(id=call_id, type="function", function=function)
        message.tool_calls = [*(message.tool_calls or ()), call]
        origin.calls.append(item)

    def _add_output(self, value: dict[str, Any], item: str) -> None:
        given = self._convert(value, CallOutputItem, item)
        _refuse_callers(given, item)
        content = _content(given.output)
        message = Message(role="tool", content=content, tool_call_id=given.call_id)
        self.add(message, item, f"{item}.output")


_KINDS: dict[str, Callable[[Conversation, dict[str, Any], str], None]] = {
    "message": Conversation._add_message,
    "reasoning": Conversation._add_reasoning,
    "function_call": Conversation._add_function_call,
    "custom_tool_call": Conversation._add_custom_call,
    "function_call_output": Conversation._add_output,
    "custom_tool_call_output": Conversation._add_output,
}


def conversation_of(body: ResponsesBody, *, ignore_unknown: bool) -> Conversation:
    """The chat messages that `instructions` and `input` mean. Raises BadRequest."""
    instructions, given = body.instructions, body.input
    conversation = Conversation(ignore_unknown=ignore_unknown)
    if instructions is not None:
        message = Message(role="system", content=instructions)
        conversation.add(message, "instructions", "instructions")
    if isinstance(given, str):
        conversation.add(Message(role="user", content=given), "input", "input")
        return conversation
    if not given:
        raise BadRequest("'input' must not be empty.", param="input", code="empty_array")
    for i, value in enumerate(given):
        conversation.add_item(value, f"input[{i}]")
    return conversation


def _has_only_reasoning(message: Message) -> bool:
    return message.content is None and not message.tool_calls


def _content(given: str | list[ItemPart]) -> str | list[ContentPart]:
    """Content as in a chat message. Parts that are no text keep their type, which the check of
    chat messages refuses.
    """
    if isinstance(given, str):
        return given
    return [_part(part) for part in given]


def _part(part: ItemPart) -> ContentPart:
    text, kind = part.text, part.type
    if kind == "refusal":
        text, kind = part.refusal, "text"
    elif kind in _TEXT:
        kind = "text"
    elif kind == "text":
        kind = "text, which is called input_text here"
    breakpoint = part.prompt_cache_breakpoint
    return ContentPart(type=kind, text=text, prompt_cache_breakpoint=breakpoint)


def _reasoning_text(given: ReasoningItem, item: str) -> str:
    """The reasoning as text: shown, or sent as `encrypted_content`, or summarised."""
    if given.content:
        return "".join(part.text for part in given.content)
    if given.encrypted_content:
        text = opened(given.encrypted_content)
        if text is None:
            where = f"{item}.encrypted_content"
            message = f"'{where}' was not made by this server, which cannot read it."
            raise BadRequest(message, param=where, code="invalid_value")
        return text
    return "\n\n".join(part.text for part in given.summary or ())


def _refuse_callers(given: FunctionCallItem | CustomCallItem | CallOutputItem, item: str) -> None:
    if given.namespace is not None:
        raise unsupported(f"{item}.namespace")
    if given.is_async:
        raise unsupported(f"{item}.async")
    if given.caller not in (None, {"type": "direct"}):
        raise unsupported(f"{item}.caller")


def _not_taken(kind: str, where: str) -> BadRequest:
    if kind == "item_reference":
        what = "references to items, as none is stored (clients send items if 'store' is false)"
        return unsupported(where, what)
    return unsupported(where, f"items of type '{shown(kind)}'")

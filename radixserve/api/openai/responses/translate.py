"""Turns a body into the chat body that means the same, so that there is one validator.

A refusal of the chat body names a field of it; `Translation.name` finds the field that the client
wrote. Knows no tokenizer and no engine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from radixserve.api.openai.responses.items import Conversation, conversation_of
from radixserve.api.openai.responses.tools import chat_tool_choice, chat_tools
from radixserve.api.openai.responses.wire import (
    HARMLESS,
    INCLUDABLE,
    REFUSED,
    SAME_IN_CHAT,
    ReasoningConfig,
    ResponsesBody,
    TextConfig,
)
from radixserve.api.openai.wire import ChatBody, StreamOptions
from radixserve.api.openai.wire_format import ResponseFormat
from radixserve.api.openai.wire_tools import Tool, ToolChoice
from radixserve.api.refusals import shown, unsupported
from radixserve.errors import ApiError, BadRequest

_RENAMED = (
    ("max_completion_tokens", "max_output_tokens"),
    ("messages", "input"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
    ("verbosity", "text.verbosity"),
    ("logprobs", "include"),
    ("tool_choice.function", "tool_choice"),
    ("tool_choice.allowed_tools", "tool_choice"),
)
_TOOL = re.compile(r"(tools\[\d+\])\.function\b")


@dataclass(frozen=True, slots=True)
class Translation:
    """A body as chat body, and the way back for the names in refusals."""

    chat: ChatBody
    conversation: Conversation

    def name(self, refusal: ApiError) -> None:
        """Let `refusal`, of the chat body, name the field that the client wrote."""
        if (old := refusal.param) is None:
            return
        new = self.conversation.source_of(old) or _renamed(old)
        refusal.param = new
        refusal.message = refusal.message.replace(f"'{old}'", f"'{new}'")


def translate(body: ResponsesBody) -> Translation:
    """The chat body that `body` means. Raises BadRequest for what has no counterpart there."""
    _refuse_stateful(body)
    return chat_of(body, conversation_of(body.instructions, body.input))


def chat_of(body: ResponsesBody, conversation: Conversation) -> Translation:
    """The chat body with `body`'s fields and the messages of `conversation`."""
    options = body.stream_options
    chat = ChatBody(
        messages=conversation.messages,
        max_completion_tokens=body.max_output_tokens,
        logprobs=wants_logprobs(body) or None,
        tools=_typed(chat_tools(body.tools), list[Tool] | None, "tools"),
        tool_choice=_typed(
            chat_tool_choice(body.tool_choice), str | ToolChoice | None, "tool_choice"
        ),
        response_format=_typed(
            _response_format(body.text or TextConfig()), ResponseFormat | None, "text.format"
        ),
        verbosity=None if body.text is None else body.text.verbosity,
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
        stream_options=None
        if options is None
        else StreamOptions(include_obfuscation=options.include_obfuscation),
        **{name: getattr(body, name) for name in SAME_IN_CHAT},
    )
    if not chat.logprobs:
        chat.top_logprobs = None
    return Translation(chat, conversation)


def _typed(value: Any, wanted: Any, param: str) -> Any:
    """`value` as the type of the chat body. Raises BadRequest that names `param`."""
    try:
        return msgspec.convert(value, wanted, strict=True)
    except msgspec.ValidationError as error:
        raise BadRequest(
            f"Invalid value for '{param}': {error}.", param=param, code="invalid_type"
        ) from None


def wants_logprobs(body: ResponsesBody) -> bool:
    """Whether the answer's text is to carry the logprobs of its tokens."""
    return bool(body.top_logprobs) or "message.output_text.logprobs" in (body.include or ())


def _refuse_stateful(body: ResponsesBody) -> None:
    for name in REFUSED:
        value, harmless = getattr(body, name), HARMLESS.get(name)
        if value is not None and not (value == harmless and type(value) is type(harmless)):
            raise unsupported(name)
    for i, value in enumerate(body.include or ()):
        if value not in INCLUDABLE:
            message = f"'{shown(value)}' is not a value of 'include'."
            raise BadRequest(message, param=f"include[{i}]", code="invalid_value")
    reasoning = body.reasoning or ReasoningConfig()
    if reasoning.context not in (None, "auto"):
        raise unsupported("reasoning.context")
    if reasoning.mode not in (None, "standard"):
        raise unsupported("reasoning.mode")


def _response_format(text: TextConfig) -> dict[str, Any] | None:
    """`response_format` of a chat body, where the members of a schema are one level deeper."""
    if (given := text.format) is None or given.get("type") != "json_schema":
        return given
    inner = {name: value for name, value in given.items() if name != "type"}
    return {"type": "json_schema", "json_schema": inner}


def _renamed(param: str) -> str:
    """The field of this body that corresponds to `param` of the chat body."""
    for old, new in _RENAMED:
        if param == old or param.startswith((f"{old}.", f"{old}[")):
            return new + param.removeprefix(old)
    return _TOOL.sub(r"\1", param)

"""Turns a body into the chat body that means the same, so that there is one validator.

A refusal of the chat body names a field of it; `Translation.name` finds the field that the client
wrote. Knows no tokenizer and no engine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

import msgspec

from radixserve.api.body import convert_member
from radixserve.api.openai.responses.items import Conversation, conversation_of
from radixserve.api.openai.responses.tools import chat_tool_choice, chat_tools, without_hosted
from radixserve.api.openai.responses.wire import (
    HARMLESS,
    INCLUDABLE,
    REFUSED,
    SAME_IN_CHAT,
    PlainFormat,
    ReasoningConfig,
    ResponsesBody,
    TextConfig,
)
from radixserve.api.openai.wire import ChatBody, StreamOptions
from radixserve.api.openai.wire_format import JsonSchema, ResponseFormat
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

    def starting_at(self, start: int) -> Translation:
        """See `Conversation.starting_at`."""
        rest = self.conversation.starting_at(start)
        return Translation(msgspec.structs.replace(self.chat, messages=rest.messages), rest)

    def name(self, refusal: ApiError) -> None:
        """Let `refusal`, of the chat body, name the field that the client wrote."""
        if (old := refusal.param) is None:
            return
        new = self.conversation.source_of(old) or _renamed(old)
        refusal.param = new
        refusal.message = refusal.message.replace(f"'{old}'", f"'{new}'")


def translate(body: ResponsesBody, *, ignore_unknown: bool = False) -> Translation:
    """The chat body that `body` means. Raises BadRequest for what has no counterpart there.

    With `ignore_unknown` fields that are not known are left out, and so are tools that the server
    would have to run, in `body`, too.
    """
    _refuse_stateful(body)
    if ignore_unknown and body.tools:
        body.tools = without_hosted(body.tools)
    conversation = conversation_of(body, ignore_unknown=ignore_unknown)
    options = None
    if body.stream_options is not None:
        options = StreamOptions(include_obfuscation=body.stream_options.include_obfuscation)
    chat = ChatBody(
        messages=conversation.messages,
        max_completion_tokens=body.max_output_tokens,
        logprobs=wants_logprobs(body) or None,
        tools=chat_tools(body.tools, ignore_unknown=ignore_unknown),
        tool_choice=chat_tool_choice(body.tool_choice, ignore_unknown=ignore_unknown),
        response_format=_response_format(body.text or TextConfig(), ignore_unknown),
        verbosity=None if body.text is None else body.text.verbosity,
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
        stream_options=options,
        **{name: getattr(body, name) for name in SAME_IN_CHAT},
    )
    if not chat.logprobs:
        chat.top_logprobs = None
    return Translation(chat, conversation)


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


def _response_format(text: TextConfig, ignore_unknown: bool) -> ResponseFormat | None:
    """`response_format` of a chat body, where the members of a schema are one level deeper."""
    if (given := text.format) is None:
        return None
    convert = partial(convert_member, path="text.format", ignore_unknown=ignore_unknown)
    if given.get("type") != "json_schema":
        return ResponseFormat(type=convert(given, PlainFormat).type)
    members = {name: value for name, value in given.items() if name != "type"}
    return ResponseFormat(type="json_schema", json_schema=convert(members, JsonSchema))


def _renamed(param: str) -> str:
    """The field of this body that corresponds to `param` of the chat body."""
    for old, new in _RENAMED:
        if param == old or param.startswith((f"{old}.", f"{old}[")):
            return new + param.removeprefix(old)
    return _TOOL.sub(r"\1", param)

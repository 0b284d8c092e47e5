"""Chat messages in the form that chat templates take: see `Conversation.messages`.

Other roles and content parts are refused by name. Knows no template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from radixserve.api.openai.wire import ContentPart, Message
from radixserve.api.openai.wire_tools import CalledFunction, ToolCall
from radixserve.api.refusals import missing, shown, unsupported
from radixserve.errors import BadRequest

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# Members that only messages of one role may have.
_OF_ROLE = {
    "tool_calls": "assistant",
    "function_call": "assistant",
    "reasoning": "assistant",
    "reasoning_content": "assistant",
    "tool_call_id": "tool",
}
_UNSERVED = ("refusal", "annotations", "audio")
_UNSERVED_PARTS = ("image_url", "input_audio", "audio_url", "video_url", "file", "refusal")


def render_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages for the chat template; text parts are joined, arguments of calls are decoded,
    and a tool's answer gets the name of the function that was called. Raises BadRequest.
    """
    if not messages:
        raise BadRequest("'messages' must not be empty.", param="messages", code="empty_array")
    called: dict[str, str] = {}
    rendered = []
    for i, message in enumerate(messages):
        rendered.append(_render_message(message, f"messages[{i}]", called))
        for call in message.tool_calls or ():
            if call.id is not None and call.function is not None:
                called[call.id] = call.function.name
    return rendered


def _render_message(message: Message, path: str, called: dict[str, str]) -> dict[str, Any]:
    _check_members(message, path)
    rendered: dict[str, Any] = {"role": message.role, "content": _text_of(message, path)}
    match message.role:
        case "developer":
            rendered["role"] = "system"
        case "assistant":
            if (reasoning := message.reasoning_content or message.reasoning) is not None:
                rendered["reasoning_content"] = reasoning
            if calls := _calls(message, path):
                rendered["tool_calls"] = calls
        case "tool" | "function":
            rendered["role"] = "tool"
            name = message.name or called.get(message.tool_call_id or "")
            more = {"tool_call_id": message.tool_call_id, "name": name}
            rendered |= {key: value for key, value in more.items() if value is not None}
    return rendered


def _check_members(message: Message, path: str) -> None:
    if message.role not in _ROLES:
        known = ", ".join(_ROLES)
        text = f"'{shown(message.role)}' is not a role; known roles: {known}."
        raise BadRequest(text, param=f"{path}.role", code="invalid_value")
    for name in _UNSERVED:
        if getattr(message, name) not in (None, "", []):
            raise unsupported(f"{path}.{name}")
    for name, role in _OF_ROLE.items():
        if getattr(message, name) not in (None, "", []) and message.role != role:
            text = f"'{name}' belongs to messages of role '{role}'."
            raise BadRequest(text, param=f"{path}.{name}", code="invalid_value")


def _calls(message: Message, path: str) -> list[dict[str, Any]]:
    if message.function_call is not None:  # the older form, without an id
        return [{"type": "function", "function": _called(message.function_call)}]
    return [
        _call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls or ())
    ]


def _call(call: ToolCall, path: str) -> dict[str, Any]:
    if call.type not in (None, "function"):
        raise unsupported(f"{path}.type", f"calls of type '{shown(call.type)}'")
    if call.function is None:
        raise missing(f"{path}.function")
    rendered = {"id": call.id, "type": "function", "function": _called(call.function)}
    return {key: value for key, value in rendered.items() if value is not None}


def _called(function: CalledFunction) -> dict[str, Any]:
    """Name and arguments. Arguments that are no JSON object stay text, for the template to show."""
    arguments: Any = {} if function.arguments in (None, "") else function.arguments
    if isinstance(arguments, str):
        try:
            decoded = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
            decoded = None
        arguments = decoded if isinstance(decoded, dict) else arguments
    return {"name": function.name, "arguments": arguments}


def _text_of(message: Message, path: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if not message.content and message.role == "assistant":
        return ""  # clients send this for an answer without text
    if message.content is None:
        raise missing(f"{path}.content")
    if not message.content:
        raise BadRequest(
            "'content' must not be an empty list.", param=f"{path}.content", code="empty_array"
        )
    parts = enumerate(message.content)
    return "".join([_text_of_part(part, f"{path}.content[{i}]") for i, part in parts])


def _text_of_part(part: ContentPart, path: str) -> str:
    if part.type != "text":
        raise unsupported(f"{path}.type", f"content parts of type '{shown(part.type)}'")
    for name in _UNSERVED_PARTS:
        if getattr(part, name) is not None:
            raise unsupported(f"{path}.{name}")
    if part.text is None:
        raise missing(f"{path}.text")
    return part.text

"""Tools for chat templates that have no place for them: they are written into the messages as text.

A text that lists the tools comes first in the system message. The model is asked to call a tool as

    <tool_call>{"name": "weather", "arguments": {"place": "Oslo"}}</tool_call>

which is what many models were trained on. Earlier calls are written into the assistant's messages
in the same form, and results become messages of the user:

    <tool_response>{"name": "weather", "content": "rain"}</tool_response>

The same tools give the same text, and a longer conversation begins with the text of the shorter
one, so prefixes of prompts stay the same. Knows no template and no tokenizer.
"""

from __future__ import annotations

import json
from typing import Any

from msgspec.structs import replace

from radixserve.text.conversation import Conversation

_INTRODUCTION = """\
You can call tools. These are the tools, one JSON object per line:
<tools>
"""
_RULES = """
</tools>
To call a tool, write a JSON object with its name and arguments between tags, and nothing after it:
<tool_call>{"name": "...", "arguments": {...}}</tool_call>
Several calls follow each other, each between tags of its own. The results come in the next message,
between <tool_response> tags. If no tool is needed, answer in plain text."""
LITERALS = f"{_INTRODUCTION}{_RULES}<tool_call></tool_call><tool_response></tool_response>"
"""All that this module writes around what a client wrote."""

_Message = dict[str, Any]


def with_generic_tools(conversation: Conversation, *, has_system: bool) -> Conversation:
    """The same conversation without tools, calls and results other than in the text of messages.

    `has_system`: the template renders system messages; otherwise the tools are told at the
    beginning of the first message. Raises KeyError, ValueError, TypeError or AttributeError for
    messages that have not the form of a `Conversation`.
    """
    messages: list[_Message] = []
    names: dict[Any, Any] = {}  # of the tools that earlier calls called, by the calls' ids
    for message in conversation.messages:
        names |= {call.get("id"): call["function"]["name"] for call in _calls(message)}
        if message["role"] != "tool":
            messages.append(_with_calls(message))
        elif messages and messages[-1].get("role") == "tool":
            messages[-1]["content"] += "\n" + _result(message, names)
        else:
            messages.append({"role": "tool", "content": _result(message, names)})
    messages = [{**m, "role": "user"} if m["role"] == "tool" else m for m in messages]
    if conversation.tools:
        messages = _told(_introduction(conversation.tools), messages, has_system)
    return replace(conversation, messages=messages, tools=[])


def _introduction(tools: list[dict[str, Any]]) -> str:
    return _INTRODUCTION + "\n".join(map(_json, tools)) + _RULES


def _told(text: str, messages: list[_Message], has_system: bool) -> list[_Message]:
    """`messages` with `text` first."""
    first, *others = messages
    if has_system and first["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    return [{**first, "content": f"{text}\n\n{first['content']}"}, *others]


def _with_calls(message: _Message) -> _Message:
    calls = _calls(message)
    if not calls:
        return message
    content = message.get("content")
    parts = [content] if content else []
    return {
        **{key: value for key, value in message.items() if key != "tool_calls"},
        "content": "\n".join(parts + [_call(call["function"]) for call in calls]),
    }


def _calls(message: _Message) -> list[dict[str, Any]]:
    return message.get("tool_calls") or []


def _call(function: dict[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>{_json(call)}</tool_call>"


def _result(message: _Message, names: dict[Any, Any]) -> str:
    name = message.get("name") or names.get(message.get("tool_call_id"))
    told = {"name": name} if name else {}
    return f"<tool_response>{_json({**told, 'content': message['content']})}</tool_response>"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

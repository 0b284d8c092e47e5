"""The forms in which some chat templates want earlier tool calls.

Which one a template wants is found by `probes`. Knows no template.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from msgspec.structs import replace

from radixserve.text.conversation import Conversation

SHORT_ID_CHARS = 9  # of a tool call's id, where a template accepts no other

_Object = dict[str, Any]


def with_argument_text(conversation: Conversation) -> Conversation:
    """The same conversation with the arguments of earlier calls as JSON text.

    Raises KeyError or TypeError for calls of another form.
    """

    def change(message: _Object) -> _Object:
        calls = [_with_argument_text(call) for call in message.get("tool_calls") or ()]
        return {**message, "tool_calls": calls} if calls else message

    return replace(conversation, messages=list(map(change, conversation.messages)))


def _with_argument_text(call: _Object) -> _Object:
    function = call["function"]
    if isinstance(arguments := function["arguments"], str):
        return call
    text = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def with_short_ids(conversation: Conversation) -> Conversation:
    """The same conversation with other ids of calls, of `SHORT_ID_CHARS` letters and digits, always
    the same one for the same id. Ids of this form stay.
    """

    def change(message: _Object) -> _Object:
        message = _with_short_id(message, "tool_call_id")
        calls = [_with_short_id(call, "id") for call in message.get("tool_calls") or ()]
        return {**message, "tool_calls": calls} if calls else message

    return replace(conversation, messages=list(map(change, conversation.messages)))


def _with_short_id(value: _Object, key: str) -> _Object:
    given = value.get(key)
    if not isinstance(given, str) or (len(given) == SHORT_ID_CHARS and given.isalnum()):
        return value
    digest = hashlib.blake2b(given.encode(), digest_size=SHORT_ID_CHARS).hexdigest()
    return {**value, key: digest[:SHORT_ID_CHARS]}

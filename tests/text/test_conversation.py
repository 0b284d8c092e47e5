"""Which strings of a conversation a client wrote."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from radixserve.text.conversation import Conversation, changed, client_strings

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "type": {"type": ["string", "null"], "enum": ["role", "name"]},
                "place": {"description": "Where?", "default": {"type": "string"}},
            },
            "required": ["place"],
            "x-own": True,
        },
    },
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"name": ["Oslo", 3, None]}},
}
WHOLE = Conversation(
    messages=[
        {"role": "user", "content": "Hi", "name": "Ann"},
        {"role": "assistant", "content": "", "reasoning_content": "Hm", "tool_calls": [CALL]},
        {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
        {"role": "sage", "content": "no role"},
    ],
    tools=[TOOL],
    options={"enable_thinking": False, "style": {"content": "short"}},
    documents=[{"title": "T", "own key": "text"}],
    ending="closed",
)


def test_every_string_that_a_client_wrote_is_changed_and_no_other() -> None:
    found = changed(WHOLE, lambda text: f"<{text}>")
    assert found.messages == [
        {"role": "user", "content": "<Hi>", "name": "<Ann>"},
        {
            "role": "assistant",
            "content": "<>",
            "reasoning_content": "<Hm>",
            "tool_calls": [
                {
                    "id": "<call_1>",
                    "type": "function",
                    "function": {"name": "<weather>", "arguments": {"<name>": ["<Oslo>", 3, None]}},
                }
            ],
        },
        {"role": "tool", "content": "<rain>", "tool_call_id": "<call_1>"},
        {"role": "<sage>", "content": "<no role>"},
    ]
    function = found.tools[0]["function"]
    assert (function["name"], function["description"]) == ("<weather>", "<Tells the weather.>")
    assert function["parameters"] == {
        "type": "object",
        "properties": {
            "<type>": {"type": ["string", "null"], "enum": ["<role>", "<name>"]},
            "<place>": {"description": "<Where?>", "default": {"<type>": "<string>"}},
        },
        "required": ["<place>"],
        "<x-own>": True,
    }
    assert found.options == {"enable_thinking": False, "style": {"<content>": "<short>"}}
    assert found.documents == [{"title": "<T>", "<own key>": "<text>"}]
    assert found.ending == "closed"


def test_the_strings_of_a_client_are_listed_in_order() -> None:
    plain = Conversation(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]
    )
    assert client_strings(plain) == ["Hi"]
    assert client_strings(WHOLE)[:4] == ["Hi", "Ann", "", "Hm"]


def test_a_conversation_survives_the_wire() -> None:
    sent = msgspec.msgpack.encode(WHOLE)
    assert msgspec.msgpack.decode(sent, type=Conversation) == WHOLE


def test_values_that_are_nested_too_deeply_cannot_be_walked() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        client_strings(Conversation([], options={"deep": deep}))

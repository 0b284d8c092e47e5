"""Tools over the chat endpoint: what the template gets, what the client gets, what is refused."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import openai
import pytest

from radixserve.request import Request
from tests.api.conftest import CHAT, MODEL, Server, body_for
from tests.fakes import EOS, INFO

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
TWO_CALLS = (
    'I will look.<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
)


def answering(server: Server, text: str) -> None:
    """Let the engine answer every request with `text`; prompts with tools are long in bytes."""
    server.engine.info = msgspec.structs.replace(INFO, context_length=4096, max_request_tokens=4096)

    def answer(request: Request) -> list[int]:
        return [*text.encode(), EOS]

    server.engine.answer = answer


def asking(**more: Any) -> dict[str, Any]:
    return body_for(CHAT, tools=[WEATHER, TIME], **more) | {"max_tokens": 400}


async def chunks(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with server.session.post(server.url + CHAT, json=body | {"stream": True}) as response:
        assert response.status == 200, await response.text()
        lines = [line.removeprefix("data: ") for line in (await response.text()).split("\n\n")]
    return [json.loads(line) for line in lines if line.startswith("{")]


async def test_calls_come_back_apart_from_the_text(server: Server) -> None:
    answering(server, TWO_CALLS)
    status, answer = await server.post(CHAT, asking())
    message = answer["choices"][0]["message"]
    assert status == 200
    assert message["content"].strip() == "I will look."
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city": "Rome"}'},
        {"name": "time", "arguments": "{}"},
    ]
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert all(call["type"] == "function" for call in message["tool_calls"])
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


async def test_an_answer_of_calls_only_has_no_content(server: Server) -> None:
    answering(server, TWO_CALLS.removeprefix("I will look."))
    _, answer = await server.post(CHAT, asking())
    assert answer["choices"][0]["message"]["content"] is None


@pytest.mark.parametrize("tokens_per_event", [1, 7, 500])
async def test_streamed_calls_add_up_to_the_whole_answer(
    server: Server, tokens_per_event: int
) -> None:
    answering(server, TWO_CALLS)
    server.engine.tokens_per_event = tokens_per_event
    events = await chunks(server, asking())
    choices = [event["choices"][0] for event in events]
    calls: dict[int, dict[str, str]] = {}
    for choice in choices:
        pieces = choice["delta"].get("tool_calls", [])
        assert len(pieces) <= 1, "clients read one call of a chunk only"
        for piece in pieces:
            if "id" in piece:
                assert piece["type"] == "function"
                assert piece["index"] == len(calls)
                calls[piece["index"]] = {"name": piece["function"]["name"], "arguments": ""}
            calls[piece["index"]]["arguments"] += piece["function"]["arguments"]
    assert [*calls.values()] == [
        {"name": "weather", "arguments": '{"city": "Rome"}'},
        {"name": "time", "arguments": "{}"},
    ]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert text.strip() == "I will look."
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == [
        "tool_calls"
    ]
    assert choices[-1]["finish_reason"] == "tool_calls"


async def test_the_official_client_collects_a_streamed_call(server: Server) -> None:
    answering(server, TWO_CALLS)
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
    manager = client.chat.completions.stream(
        model=MODEL,
        messages=[{"role": "user", "content": "a"}],
        tools=[WEATHER, TIME],  # type: ignore[list-item]
        max_tokens=400,
    )
    async with client, manager as stream:
        completion = await stream.get_final_completion()
    calls = completion.choices[0].message.tool_calls
    assert calls is not None
    assert [call.function.name for call in calls] == ["weather", "time"]
    assert calls[0].function.parsed_arguments == {"city": "Rome"}


async def test_a_broken_call_is_text_and_no_failure(server: Server) -> None:
    broken = '<tool_call>\n{"name": "nothing", "arguments'
    answering(server, broken)
    status, answer = await server.post(CHAT, asking())
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == broken
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_without_tools_the_markup_is_text(server: Server) -> None:
    answering(server, TWO_CALLS)
    for body in (
        body_for(CHAT) | {"max_tokens": 400},
        asking(tool_choice="none"),
    ):
        _, answer = await server.post(CHAT, body)
        assert answer["choices"][0]["message"]["content"] == TWO_CALLS


async def test_a_conversation_with_calls_can_be_replayed(server: Server) -> None:
    answering(server, "It is sunny.")
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
    }
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sun"}]},
    ]
    status, answer = await server.post(CHAT, asking(messages=messages))
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "It is sunny."
    prompt = bytes(i for i in server.engine.seen[-1].prompt_ids if i < EOS).decode()
    assert all(word in prompt for word in ("Weather?", "weather", "Rome", "sun"))


async def test_the_older_form_of_tools_is_understood(server: Server) -> None:
    answering(server, '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>')
    functions = [TIME["function"]]
    body = body_for(CHAT, functions=functions) | {"max_tokens": 400}
    _, answer = await server.post(CHAT, body)
    choice = answer["choices"][0]
    assert choice["message"]["function_call"] == {"name": "time", "arguments": "{}"}
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "function_call"
    events = await chunks(server, body)
    pieces = [event["choices"][0]["delta"].get("function_call") for event in events]
    assert [piece["name"] for piece in pieces if piece and "name" in piece] == ["time"]
    assert "".join(piece["arguments"] for piece in pieces if piece) == "{}"


BAD = [
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools[0].function.name",
        "invalid_value",
    ),
    ({"tools": [TIME, TIME]}, "tools[1].function.name", "invalid_value"),
    ({"tools": [TIME] * 513}, "tools", "array_above_max_length"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    (
        {
            "tools": [TIME],
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": []},
            },
        },
        "tool_choice.allowed_tools.tools",
        "empty_array",
    ),
    ({"tools": [TIME], "tool_choice": "sometimes"}, "tool_choice", "invalid_value"),
    (
        {"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice.function.name",
        "invalid_value",
    ),
    (
        {"tools": [TIME], "tool_choice": {"type": "custom"}},
        "tool_choice.type",
        "unsupported_parameter",
    ),
    ({"tools": [TIME], "functions": [{"name": "x"}]}, "functions", "invalid_value"),
    ({"function_call": {"name": "x"}}, "function_call", "invalid_value"),
    (
        {
            "messages": [
                {"role": "user", "content": "a", "tool_calls": [{"function": {"name": "x"}}]}
            ]
        },
        "messages[0].tool_calls",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"type": "custom", "custom": {}}]}]},
        "messages[0].tool_calls[0].type",
        "unsupported_parameter",
    ),
    (
        {"messages": [{"role": "tool", "tool_call_id": "x"}]},
        "messages[0].content",
        "missing_required_parameter",
    ),
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools", "invalid_value"),
]


@pytest.mark.parametrize(("fields", "param", "code"), BAD)
async def test_bad_tools_are_refused_by_name_and_the_next_request_is_served(
    server: Server, fields: dict[str, Any], param: str, code: str
) -> None:
    status, answer = await server.post(CHAT, body_for(CHAT) | fields)
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, param, code)
    status, _ = await server.post(CHAT, body_for(CHAT))
    assert status == 200


async def test_arguments_that_are_no_object_stay_text_in_history(server: Server) -> None:
    answering(server, "ok")
    calls = [{"id": "1", "type": "function", "function": {"name": "time", "arguments": "{broken"}}]
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": ""},
    ]
    status, _ = await server.post(CHAT, asking(messages=messages))
    assert status == 200

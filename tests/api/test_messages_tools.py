"""Tools and structured output over /v1/messages: calls are blocks, results go back, an agent's loop
runs through Anthropic's own client.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam

from radixserve.api.app import ApiSettings
from radixserve.request import Request
from tests.api.conftest import CHAT, MESSAGES, MODEL, Server, body_for
from tests.api.test_messages import COUNT_TOKENS, assembled, streamed
from tests.api.test_tools import TWO_CALLS, answering
from tests.fakes import EOS

WEATHER: ToolParam = {
    "name": "weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
TIME: ToolParam = {"name": "time", "input_schema": {"type": "object"}}
TOOLS = [WEATHER, TIME]
INPUTS = [("weather", {"city": "Rome"}), ("time", {})]


@pytest.fixture
async def client(server: Server) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=server.url, api_key="none", max_retries=0
    ) as client:
        yield client


def asking(**more: Any) -> dict[str, Any]:
    return body_for(MESSAGES, tools=TOOLS, **more) | {"max_tokens": 400}


def prompt_of(request: Request) -> str:
    return bytes(token for token in request.prompt_ids if token < EOS).decode()


async def test_calls_are_blocks_beside_the_text(server: Server) -> None:
    answering(server, TWO_CALLS)
    status, answer = await server.post(MESSAGES, asking())
    assert (status, answer["stop_reason"]) == (200, "tool_use")
    text, *calls = answer["content"]
    assert text["text"].strip() == "I will look."
    assert [(call["name"], call["input"]) for call in calls] == INPUTS
    assert len({call["id"] for call in calls}) == 2


@pytest.mark.parametrize("tokens_per_event", [1, 7, 500])
async def test_streamed_calls_add_up_to_the_whole_answer(
    server: Server, tokens_per_event: int
) -> None:
    answering(server, TWO_CALLS)
    server.engine.tokens_per_event = tokens_per_event
    events = await streamed(server, asking())
    text, *calls = assembled(events)
    assert text["text"].strip() == "I will look."
    assert [(call["name"], call["input"]) for call in calls] == INPUTS
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


async def test_a_call_that_is_cut_keeps_what_was_written(server: Server) -> None:
    cut = TWO_CALLS[: TWO_CALLS.index("Rome")]
    answering(server, cut + "x" * 400)
    _, answer = await server.post(MESSAGES, asking() | {"max_tokens": len(cut)})
    assert answer["stop_reason"] == "max_tokens"
    *_, block = answer["content"]
    written = block["text"] if block["type"] == "text" else block["input"]["INVALID_JSON"]
    assert "city" in written


async def test_the_client_runs_an_agents_loop(
    client: anthropic.AsyncAnthropic, server: Server
) -> None:
    answering(server, TWO_CALLS)
    turns: list[MessageParam] = [{"role": "user", "content": "Weather?"}]
    first = await client.messages.create(model=MODEL, max_tokens=400, messages=turns, tools=TOOLS)
    calls = [block for block in first.content if block.type == "tool_use"]
    results: list[Any] = [
        {"type": "tool_result", "tool_use_id": call.id, "content": f"result of {call.name}"}
        for call in calls
    ]
    turns += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [*results, {"type": "text", "text": "go on"}]},
    ]
    answering(server, "It is sunny.")
    async with client.messages.stream(
        model=MODEL, max_tokens=100, messages=turns, tools=TOOLS
    ) as stream:
        final = await stream.get_final_text()
    assert final == "It is sunny."
    before, after = [prompt_of(request) for request in server.engine.seen]
    assert after.startswith(before), "the prompt of the second turn extends that of the first"
    for word in ("Rome", "result of weather", "result of time", "go on"):
        assert word in after


@pytest.mark.parametrize(
    ("choice", "as_chat"),
    [
        ({"type": "any"}, "required"),
        ({"type": "tool", "name": "time"}, {"type": "function", "function": {"name": "time"}}),
        ({"type": "none"}, "none"),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto"),
    ],
)
async def test_a_request_with_tools_is_the_same_as_in_chat(
    server: Server, choice: dict[str, Any], as_chat: Any
) -> None:
    tools = [
        {"type": "function", "function": {"parameters": tool.get("input_schema"), **tool}}
        for tool in TOOLS
    ]
    for tool in tools:
        del tool["function"]["input_schema"]  # type: ignore[attr-defined]
    more: dict[str, Any] = {"tools": tools, "tool_choice": as_chat}
    if choice.get("disable_parallel_tool_use"):
        more["parallel_tool_calls"] = False
    answering(server, "")
    status, said = await server.post(MESSAGES, asking(tool_choice=choice))
    assert status == 200, said
    assert (await server.post(CHAT, body_for(CHAT, **more) | {"max_tokens": 400}))[0] == 200
    messages, chat = server.engine.seen
    assert prompt_of(messages) == prompt_of(chat)
    assert messages.sampling.grammar == chat.sampling.grammar


async def test_a_format_constrains_the_answer(server: Server) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    config = {"format": {"type": "json_schema", "schema": schema}}
    status, answer = await server.post(MESSAGES, body_for(MESSAGES, output_config=config))
    assert status == 200, answer
    grammar = server.engine.seen[0].sampling.grammar
    assert grammar is not None
    assert json.loads(grammar.source) == schema | {"additionalProperties": False}


async def test_tools_count_as_tokens(server: Server) -> None:
    answering(server, "")
    await server.post(MESSAGES, asking())
    body = asking()
    del body["max_tokens"]
    _, counted = await server.post(COUNT_TOKENS, body)
    assert counted == {"input_tokens": len(server.engine.seen[0].prompt_ids)}


class TestWithUnknownFieldsLeftOut:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(ignore_unknown_fields=True)

    async def test_unknown_members_and_tools_of_anthropic_are_left_out_and_logged(
        self, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        answering(server, TWO_CALLS)
        hosted = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
        body = asking(mood=1) | {"tools": [hosted, {**WEATHER, "tone": 1}, TIME]}
        status, answer = await server.post(MESSAGES, body)
        assert (status, answer["stop_reason"]) == (200, "tool_use"), answer
        for word in ("web_search_20250305", "tools[1].tone", "mood"):
            assert word in caplog.text
        body["tools"][2] = {**TIME, "name": "a b"}
        _, answer = await server.post(MESSAGES, body)
        assert "tools[2].name" in answer["error"]["message"]


class TestReasoning:
    """The model sets its reasoning apart."""

    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(reasoning_parser="think")

    @pytest.mark.parametrize("display", ["summarized", "omitted"])
    async def test_the_reasoning_is_a_block_of_its_own(
        self, client: anthropic.AsyncAnthropic, server: Server, display: Any
    ) -> None:
        answering(server, "<think>well</think>yes")
        thinking: Any = {"type": "adaptive", "display": display}
        body = asking(thinking=thinking)
        _, answer = await server.post(MESSAGES, body)
        block, text = answer["content"]
        assert block["thinking"].strip() == ("well" if display == "summarized" else "")
        assert block["signature"]
        assert text["text"].strip() == "yes"
        assert assembled(await streamed(server, body)) == answer["content"]
        spent = answer["usage"]["output_tokens_details"]["thinking_tokens"]
        assert 0 < spent < answer["usage"]["output_tokens"]
        async with client.messages.stream(
            model=MODEL,
            max_tokens=100,
            messages=[{"role": "user", "content": "a"}],
            thinking=thinking,
        ) as stream:
            message = await stream.get_final_message()
        assert [each.type for each in message.content] == ["thinking", "text"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tools": [TIME, TIME]}, "tools[1].name"),
    ({"tools": [{**TIME, "name": "a b"}]}, "tools[0].name"),
    ({"tools": [{**TIME, "name": ""}]}, "tools[0].name"),
    ({"tools": [], "tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tool_choice": {"type": "tool", "name": "missing"}}, "tool_choice.name"),
    (
        {"tools": [{**TIME, "input_schema": {"type": 5}}], "tool_choice": {"type": "any"}},
        "tools: The parameters of 'time'",
    ),
    ({"output_config": {"format": {"type": "json_schema", "schema": {"type": 5}}}}, "format"),
]


@pytest.mark.parametrize(("fields", "named"), BAD, ids=[named for _, named in BAD])
async def test_a_bad_tool_is_refused_by_name(
    server: Server, fields: dict[str, Any], named: str
) -> None:
    status, answer = await server.post(MESSAGES, asking() | fields)
    assert status == 400, answer
    assert answer["error"]["type"] == "invalid_request_error"
    assert named in answer["error"]["message"]
    assert server.engine.seen == []

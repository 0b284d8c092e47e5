"""Tools, reasoning and the form of the answer over POST /v1/responses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import openai
import pydantic
import pytest

from radixserve.api.app import ApiSettings
from radixserve.api.openai.responses.tools import chat_tools
from radixserve.api.openai.responses.translate import translate
from radixserve.api.openai.responses.wire import ResponsesBody
from radixserve.request import Request
from tests.api.conftest import CHAT, MODEL, RESPONSES, Server, body_for
from tests.api.test_responses import ask, events_of, names
from tests.fakes import EOS

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
NAMED = {"type": "function", "name": "x"}
ALLOWED = {"type": "allowed_tools", "mode": "auto"}
SCHEMA = {"type": "json_schema"}
SHELL: Any = {"type": "custom", "name": "shell", "description": "Runs a command"}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TWO_CALLS = (
    f"I look.{CALL}\n"
    '<tool_call>\n{"name": "shell", "arguments": {"input": "ls \\"a\\""}}\n</tool_call>'
)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=server.url + "/v1", api_key="none", max_retries=0
    ) as client:
        yield client


def answering(server: Server, text: str) -> None:
    """Let the engine answer every request with `text`."""

    def answer(request: Request) -> list[int]:
        return [*text.encode(), EOS]

    server.engine.answer = answer


def asking(**more: Any) -> dict[str, Any]:
    return body_for(RESPONSES, tools=[WEATHER, SHELL], **more) | {"max_output_tokens": 400}


def prompt_of(server: Server) -> str:
    return bytes(i for i in server.engine.seen[-1].prompt_ids if i < EOS).decode()


class TestCalls:
    @pytest.fixture(autouse=True)
    def room(self, server: Server) -> None:
        """The context that a description of tools needs."""
        assert server.engine.info is not None
        more = {"context_length": 4096, "max_request_tokens": 4096}
        server.engine.info = msgspec.structs.replace(server.engine.info, **more)

    async def test_text_and_calls_are_items_of_their_own(self, server: Server) -> None:
        answering(server, TWO_CALLS)
        answer = await ask(server, asking())
        message, weather, shell = answer.output
        assert answer.status == "completed"
        assert answer.output_text == "I look."
        assert message.type == "message"
        assert weather.type == "function_call"
        assert (weather.name, weather.status) == ("weather", "completed")
        assert json.loads(weather.arguments) == {"city": "Rome"}
        assert shell.type == "custom_tool_call"
        assert (shell.name, shell.input) == ("shell", 'ls "a"')
        assert len({weather.call_id, shell.call_id, weather.id, shell.id}) == 4
        assert [tool.type for tool in answer.tools] == ["function", "custom"]

    @pytest.mark.parametrize("tokens_per_event", [1, 7, 500])
    async def test_the_events_of_calls_come_in_the_order_of_the_api(
        self, server: Server, tokens_per_event: int
    ) -> None:
        answering(server, TWO_CALLS)
        server.engine.tokens_per_event = tokens_per_event
        events = await events_of(server, asking())
        assert names(events) == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "output_item.added",
            "custom_tool_call_input.delta",
            "custom_tool_call_input.done",
            "output_item.done",
            "completed",
        ]
        done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
        assert done == events[-1]["response"]["output"]
        kind = "response.function_call_arguments.delta"
        pieces = [e["delta"] for e in events if e["type"] == kind]
        assert "".join(pieces) == done[1]["arguments"]

    async def test_a_call_that_the_limit_cuts_is_incomplete(self, server: Server) -> None:
        answering(server, CALL)
        cut = CALL.index("Rome") + 2
        answer = await ask(server, asking() | {"max_output_tokens": cut})
        (call,) = answer.output
        assert (answer.status, call.type) == ("incomplete", "function_call")
        assert call.type == "function_call"
        assert call.status == "incomplete"
        assert call.arguments.endswith('"Ro')

    async def test_a_loop_of_calls_is_replayed_as_in_chat(self, server: Server) -> None:
        answering(server, TWO_CALLS)
        first = await ask(server, asking())
        items: list[Any] = [json.loads(item.model_dump_json()) for item in first.output]
        assert items[1]["async_"] is None, "a member that the client made up"
        given = [
            {"role": "user", "content": "Weather?"},
            *items,
            {"type": "function_call_output", "call_id": items[1]["call_id"], "output": "sun"},
            {
                "type": "custom_tool_call_output",
                "call_id": items[2]["call_id"],
                "output": [{"type": "input_text", "text": "a b"}],
            },
        ]
        answering(server, "It is sunny.")
        answer = await ask(server, asking(input=given))
        assert answer.output_text == "It is sunny."
        replayed = server.engine.seen[-1].prompt_ids
        calls = [
            {"name": "weather", "arguments": items[1]["arguments"]},
            {"name": "shell", "arguments": json.dumps({"input": items[2]["input"]})},
        ]
        ids = [items[1]["call_id"], items[2]["call_id"]]
        messages = [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [
                    {"id": i, "type": "function", "function": call}
                    for i, call in zip(ids, calls, strict=True)
                ],
            },
            {"role": "tool", "tool_call_id": ids[0], "content": "sun"},
            {"role": "tool", "tool_call_id": ids[1], "content": "a b"},
        ]
        shell = {
            "name": "shell",
            "description": "Runs a command",
            "parameters": {
                "type": "object",
                "properties": {"input": {"type": "string"}},
                "required": ["input"],
                "additionalProperties": False,
            },
        }
        weather = {name: value for name, value in WEATHER.items() if name != "type"}
        tools = [{"type": "function", "function": each} for each in (weather, shell)]
        status, _ = await server.post(CHAT, {"messages": messages, "tools": tools})
        assert status == 200
        assert server.engine.seen[-1].prompt_ids == replayed

    async def test_the_clients_function_quick_start_runs(
        self, client: openai.AsyncOpenAI, server: Server
    ) -> None:
        class Weather(pydantic.BaseModel):
            city: str

        answering(server, CALL)
        tool = openai.pydantic_function_tool(Weather, name="weather")
        response = await client.responses.parse(
            model=MODEL, input="Weather?", tools=[tool], max_output_tokens=400
        )
        (call,) = response.output
        assert call.type == "function_call"
        assert call.parsed_arguments == Weather(city="Rome")
        async with client.responses.stream(
            model=MODEL, input="Weather?", tools=[WEATHER]
        ) as stream:
            deltas = [
                e.snapshot
                async for e in stream
                if e.type == "response.function_call_arguments.delta"
            ]
            final = await stream.get_final_response()
        assert json.loads(deltas[-1]) == {"city": "Rome"}
        assert final.output[0].type == "function_call"

    def test_a_regular_expression_becomes_the_pattern_of_a_custom_tool(self) -> None:
        form = {"type": "grammar", "syntax": "regex", "definition": "[a-z]+"}
        (tool,) = chat_tools([SHELL | {"format": form}]) or []
        assert tool.function is not None
        assert tool.function.parameters is not None
        text = tool.function.parameters["properties"]["input"]
        assert text == {"type": "string", "pattern": "^(?:[a-z]+)$"}

    async def test_the_clients_own_items_can_be_sent_back(
        self, client: openai.AsyncOpenAI, server: Server
    ) -> None:
        answering(server, CALL)
        first = await client.responses.create(model=MODEL, input="Weather?", tools=[WEATHER])
        history: Any = [{"role": "user", "content": "Weather?"}, *first.output]
        assert first.output[0].type == "function_call"
        call_id = first.output[0].call_id
        history += [{"type": "function_call_output", "call_id": call_id, "output": "sun"}]
        answering(server, "It is sunny.")
        second = await client.responses.create(model=MODEL, input=history, tools=[WEATHER])
        assert second.output_text == "It is sunny."

    @pytest.mark.parametrize(
        ("more", "code", "param"),
        [
            ({"tools": [WEATHER, WEATHER]}, "invalid_value", "tools[1].name"),
            ({"tools": [WEATHER | {"name": "a b"}]}, "invalid_value", "tools[0].name"),
            ({"tools": [WEATHER | {"defer_loading": True}]}, "unsupported_parameter", ...),
            ({"tool_choice": NAMED}, "invalid_value", "tool_choice.name"),
            ({"tool_choice": "sometimes"}, "invalid_value", "tool_choice"),
            ({"tools": [], "tool_choice": "required"}, "invalid_value", "tool_choice"),
            (
                {"tool_choice": ALLOWED | {"tools": [{"type": "mcp"}]}},
                "missing_required_parameter",
                "tool_choice.tools[0].name",
            ),
            (
                {"input": [{"type": "function_call_output", "call_id": "c"}]},
                "missing_required_parameter",
                "input[0].output",
            ),
            (
                {"input": [{"type": "function_call_output", "call_id": "c", "output": []}]},
                "empty_array",
                "input[0].output",
            ),
        ],
    )  # fmt: skip
    async def test_bad_tools_are_refused_by_the_name_that_the_client_wrote(
        self, server: Server, more: dict[str, Any], code: str, param: Any
    ) -> None:
        status, answer = await server.post(RESPONSES, asking() | more)
        assert (status, answer["error"]["code"]) == (400, code)
        assert param is ... or answer["error"]["param"] == param
        assert "function." not in answer["error"]["message"]


class TestReasoning:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(reasoning_parser="think")

    async def test_reasoning_is_an_item_before_the_message(self, server: Server) -> None:
        answering(server, "<think>hm</think>yes")
        body = body_for(RESPONSES) | {"max_output_tokens": 99}
        answer = await ask(server, body)
        reasoning, message = answer.output
        assert reasoning.type == "reasoning"
        assert reasoning.content is not None
        assert [part.text for part in reasoning.content] == ["hm"]
        assert (reasoning.summary, reasoning.encrypted_content) == ([], None)
        assert (message.type, answer.output_text) == ("message", "yes")
        assert answer.usage is not None
        assert 0 < answer.usage.output_tokens_details.reasoning_tokens < answer.usage.output_tokens

    async def test_the_events_of_reasoning_come_in_the_order_of_the_api(
        self, server: Server
    ) -> None:
        answering(server, "<think>hm</think>yes")
        events = await events_of(server, body_for(RESPONSES) | {"max_output_tokens": 99})
        assert names(events)[2:8] == [
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
        ]
        assert events[-1]["type"] == "response.completed"

    async def test_a_client_that_asks_for_a_summary_gets_the_reasoning_as_one(
        self, server: Server
    ) -> None:
        answering(server, "<think>hm</think>yes")
        body = body_for(RESPONSES, reasoning={"summary": "auto"}) | {"max_output_tokens": 99}
        events = await events_of(server, body)
        assert names(events)[2:8] == [
            "output_item.added",
            "reasoning_summary_part.added",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.done",
            "reasoning_summary_part.done",
            "output_item.done",
        ]
        item = events[-1]["response"]["output"][0]
        assert item["summary"] == [{"type": "summary_text", "text": "hm"}]
        assert item["content"] == []

    @pytest.mark.parametrize(
        "asked",
        [
            {"include": ["reasoning.encrypted_content"]},
            {"store": False},
            {"store": False, "reasoning": {"summary": "detailed"}},
        ],
    )
    async def test_reasoning_can_be_sent_back_with_its_opaque_form_alone(
        self, server: Server, asked: dict[str, Any]
    ) -> None:
        answering(server, "<think>hm</think>yes")
        body = body_for(RESPONSES, **asked) | {"max_output_tokens": 99}
        answer = await ask(server, body)
        item = json.loads(answer.output[0].model_dump_json())
        assert item["encrypted_content"]
        user = {"role": "user", "content": "abc"}
        yes = {"role": "assistant", "content": "yes"}
        for reasoning in (item, item | {"content": None, "summary": []}):
            body = {"input": [user, reasoning, yes, user]}
            await ask(server, body)
            sent = translate(msgspec.convert(body, ResponsesBody)).chat.messages[1]
            assert (sent.role, sent.reasoning_content, sent.content) == ("assistant", "hm", "yes")


class TestForm:
    async def test_the_parse_quick_start_runs(
        self, client: openai.AsyncOpenAI, server: Server
    ) -> None:
        class Event(pydantic.BaseModel):
            name: str
            days: int

        answering(server, '{"name": "fair", "days": 2}')
        response = await client.responses.parse(model=MODEL, input="x", text_format=Event)
        assert response.output_parsed == Event(name="fair", days=2)
        grammar = server.engine.seen[0].sampling.grammar
        assert grammar is not None
        assert grammar.kind == "json_schema"
        assert json.loads(grammar.source)["required"] == ["name", "days"]
        assert response.text is not None
        assert response.text.format is not None
        assert response.text.format.type == "json_schema"

    async def test_any_json_object_can_be_asked_for(self, server: Server) -> None:
        await ask(server, {"input": "x", "text": {"format": {"type": "json_object"}}})
        grammar = server.engine.seen[0].sampling.grammar
        assert grammar is not None
        assert grammar.kind == "json_object"

    @pytest.mark.parametrize(
        ("form", "code", "param"),
        [
            ({"type": "xml"}, "invalid_value", "text.format.type"),
            ({}, "missing_required_parameter", "text.format.type"),
            (SCHEMA | {"name": "x"}, "missing_required_parameter", "text.format.schema"),
            (SCHEMA | {"schema": {}, "x": 1}, "unknown_parameter", "text.format.x"),
            (SCHEMA | {"schema": {"type": "thing"}}, "invalid_value", "text.format"),
        ],
    )  # fmt: skip
    async def test_a_bad_form_is_refused_by_the_name_that_the_client_wrote(
        self, server: Server, form: dict[str, Any], code: str, param: str
    ) -> None:
        status, answer = await server.post(RESPONSES, {"input": "x", "text": {"format": form}})
        assert (status, answer["error"]["param"]) == (400, param)
        assert answer["error"]["code"] == code


class TestTruncation:
    TURNS = [
        {"role": role, "content": f"{i}" * 60}
        for i in range(6)
        for role in ("user", "assistant")
    ]  # fmt: skip

    async def test_the_oldest_turns_are_left_out(self, server: Server) -> None:
        given = [{"role": "developer", "content": "be brief"}, *self.TURNS]
        given.append({"role": "user", "content": "last"})
        body = {"input": given, "instructions": "rules", "max_output_tokens": 4}
        status, answer = await server.post(RESPONSES, body)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        answer = await ask(server, body | {"truncation": "auto"})
        prompt = prompt_of(server)
        assert prompt.startswith("system: rules\nsystem: be brief\nuser: ")
        assert prompt.endswith("user: last\n")
        assert "0" * 60 not in prompt
        kept = [i for i in range(6) if f"{i}" * 60 in prompt]
        assert kept == list(range(kept[0], 6)), "only the oldest are left out"
        more = len(server.engine.seen[-1].prompt_ids) + 2 * 60 + len("user: \nassistant: \n")
        assert more > 512 - 4, "no more than needed is left out"

    async def test_a_last_turn_that_is_too_long_is_refused(self, server: Server) -> None:
        given = [*self.TURNS, {"role": "user", "content": "x" * 600}]
        status, answer = await server.post(RESPONSES, {"input": given, "truncation": "auto"})
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        assert server.engine.seen == []

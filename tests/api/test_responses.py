"""POST /v1/responses: bodies and streams as the official client reads them, and its translation to
chat.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from radixserve.api.openai.responses.wire import SAME_IN_CHAT, ResponsesBody
from radixserve.api.openai.wire import ChatBody
from tests.api.conftest import ALIAS, CHAT, MODEL, RESPONSES, Server, body_for

EVENT: pydantic.TypeAdapter[ResponseStreamEvent] = pydantic.TypeAdapter(ResponseStreamEvent)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=server.url + "/v1", api_key="none", max_retries=0
    ) as client:
        yield client


async def events_of(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The data of all events, each checked against its name, its number and the client's types."""
    async with server.session.post(
        server.url + RESPONSES, json=body | {"stream": True}
    ) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        text = (await response.read()).decode()
    events: list[dict[str, Any]] = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == len(events)
        EVENT.validate_python(event, strict=True)
        events.append(event)
    return events


def names(events: list[dict[str, Any]]) -> list[str]:
    """The events' names without their common beginning; deltas in a row once."""
    short = [event["type"].removeprefix("response.") for event in events]
    return [name for i, name in enumerate(short) if i == 0 or name != short[i - 1]]


async def ask(server: Server, body: dict[str, Any]) -> Response:
    status, answer = await server.post(RESPONSES, body)
    assert status == 200, answer
    return Response.model_validate_json(json.dumps(answer), strict=True)


class TestWhole:
    async def test_a_response_has_the_clients_shape(self, server: Server) -> None:
        server.engine.num_cached = 5
        answer = await ask(server, body_for(RESPONSES, metadata={"a": "b"}, user="u"))
        assert answer.id.startswith("resp_")
        assert (answer.status, answer.model, answer.metadata) == ("incomplete", MODEL, {"a": "b"})
        assert answer.incomplete_details is not None
        assert answer.incomplete_details.reason == "max_output_tokens"
        assert answer.output_text == "use"
        (message,) = answer.output
        assert message.type == "message"
        assert message.id.startswith("msg_")
        assert message.status == "incomplete"
        assert answer.usage is not None
        prompt = len(server.engine.seen[0].prompt_ids)
        assert answer.usage.model_dump(exclude_none=True) == {
            "input_tokens": prompt,
            "input_tokens_details": {
                "cached_tokens": 5,
                "cache_write_tokens": prompt - 5,
                "cached_tokens_details": {"device": 5, "host": 0, "disk": 0},
            },
            "output_tokens": 4,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + 4,
        }

    async def test_an_answer_that_stops_is_completed(self, server: Server) -> None:
        server.engine.answer = lambda request: [*b"hi", 256]
        answer = await ask(server, body_for(RESPONSES))
        assert (answer.status, answer.incomplete_details, answer.output_text) == (
            "completed",
            None,
            "hi",
        )
        assert answer.completed_at is not None
        assert answer.output[0].type == "message"
        assert answer.output[0].status == "completed"

    async def test_an_empty_answer_is_an_empty_message(self, server: Server) -> None:
        server.engine.answer = lambda request: [256]
        answer = await ask(server, body_for(RESPONSES))
        assert (len(answer.output), answer.output_text) == (1, "")

    async def test_the_same_conversation_has_the_same_prompt_as_in_chat(
        self, server: Server
    ) -> None:
        messages = [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi"},
            {"role": "user", "content": "again"},
        ]
        await server.post(CHAT, {"model": MODEL, "messages": messages})
        output = {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "hi", "annotations": [], "logprobs": []},
            ],
        }
        given = [
            {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
            output,
            {"type": "message", "role": "user", "content": "again"},
        ]
        await ask(server, {"instructions": "be brief", "input": given})
        await ask(server, {"input": [{"role": "developer", "content": "be brief"}, *given]})
        chat, first, second = [request.prompt_ids for request in server.engine.seen]
        assert chat == first == second

    async def test_what_the_request_said_is_repeated(self, server: Server) -> None:
        answer = await ask(
            server,
            body_for(
                RESPONSES,
                model=ALIAS,
                instructions="be brief",
                temperature=0.5,
                truncation="auto",
                store=True,
                client_metadata={"session": "1"},
                reasoning={"effort": "low", "summary": "auto"},
                prompt_cache_key="k",
                safety_identifier="s",
                parallel_tool_calls=False,
            )
            | {"text": {"format": {"type": "text"}, "verbosity": "low"}},
        )
        assert (answer.model, answer.instructions, answer.temperature) == (MODEL, "be brief", 0.5)
        assert (answer.truncation, answer.service_tier) == ("auto", "default")
        assert (answer.prompt_cache_key, answer.safety_identifier) == ("k", "s")
        assert answer.parallel_tool_calls is False
        assert answer.text is not None
        assert answer.text.verbosity == "low"
        assert answer.reasoning is not None
        assert answer.reasoning.effort == "low"
        assert answer.model_extra is not None
        assert answer.model_extra["store"] is False, "nothing is stored, whatever was asked"

    async def test_sampling_fields_reach_the_engine(self, server: Server) -> None:
        more = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 7, "max_output_tokens": 3}
        await ask(server, body_for(RESPONSES) | more)
        sampling = server.engine.seen[0].sampling
        assert {name: getattr(sampling, name) for name in more if name in dir(sampling)} == {
            name: value for name, value in more.items() if name in dir(sampling)
        }
        assert sampling.max_tokens == 3

    async def test_logprobs_come_when_they_are_included(self, server: Server) -> None:
        include: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
        answer = await ask(server, body_for(RESPONSES, **include))
        message = answer.output[0]
        assert message.type == "message"
        assert message.content[0].type == "output_text"
        logprobs = message.content[0].logprobs
        assert logprobs is not None
        assert [entry.token for entry in logprobs] == ["<turn>", "u", "s", "e"]
        assert [len(entry.top_logprobs) for entry in logprobs] == [2] * 4
        events = await events_of(server, body_for(RESPONSES, **include))
        told = [
            entry
            for event in events
            if event["type"] == "response.output_text.delta"
            for entry in event["logprobs"]
        ]
        assert told == [entry.model_dump() for entry in logprobs]

    async def test_the_request_is_counted_under_its_own_name(self, server: Server) -> None:
        await ask(server, body_for(RESPONSES))
        assert [record.endpoint for record in server.metrics.records] == ["responses"]


class TestStream:
    async def test_the_events_come_in_the_order_of_the_api(self, server: Server) -> None:
        events = await events_of(server, body_for(RESPONSES))
        assert names(events) == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "incomplete",
        ]
        assert events[0]["response"]["output"] == []
        assert events[0]["response"]["status"] == "in_progress"
        assert events[0]["response"]["usage"] is None
        deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
        assert "".join(deltas) == "use"
        assert len({e["item_id"] for e in events if "item_id" in e}) == 1

    async def test_the_last_event_is_what_a_whole_answer_is(self, server: Server) -> None:
        server.engine.answer = lambda request: [*b"hello", 256]
        status, whole = await server.post(RESPONSES, body_for(RESPONSES, max_output_tokens=9))
        assert status == 200
        last = (await events_of(server, body_for(RESPONSES, max_output_tokens=9)))[-1]
        assert last["type"] == "response.completed"
        for answer in (whole, last["response"]):
            for name in ("id", "created_at", "completed_at"):
                answer.pop(name)
            answer["output"][0].pop("id")
        assert last["response"] == whole

    async def test_a_failure_midway_ends_the_stream_with_response_failed(
        self, server: Server
    ) -> None:
        server.engine.fail_at = 2
        events = await events_of(server, body_for(RESPONSES))
        assert events[-1]["type"] == "response.failed"
        response = events[-1]["response"]
        assert (response["status"], response["error"]) == (
            "failed",
            {"code": "server_error", "message": "the fake failed"},
        )


class TestClient:
    async def test_a_prompt_is_counted_as_it_is_computed(self, client: openai.AsyncOpenAI) -> None:
        given: Any = [{"role": "user", "content": "abc"}]
        counted = await client.responses.input_tokens.count(
            model=MODEL, input=given, instructions="be brief"
        )
        answer = await client.responses.create(model=MODEL, input=given, instructions="be brief")
        assert answer.usage is not None
        assert (counted.input_tokens, counted.object) == (
            answer.usage.input_tokens,
            "response.input_tokens",
        )
        with pytest.raises(openai.BadRequestError) as bad:
            await client.responses.input_tokens.count(model=MODEL, input=[])
        assert bad.value.param == "input"

    async def test_the_quick_start_runs(self, client: openai.AsyncOpenAI) -> None:
        response = await client.responses.create(model=MODEL, input="Write a short story.")
        assert response.output_text.startswith("user: Write a short story.")

    async def test_the_streaming_quick_start_runs(self, client: openai.AsyncOpenAI) -> None:
        stream = await client.responses.create(
            model=MODEL, input="abc", max_output_tokens=4, stream=True
        )
        events = [event async for event in stream]
        assert events[0].type == "response.created"
        assert events[-1].type == "response.incomplete"

    async def test_the_stream_helper_gives_the_final_response(
        self, client: openai.AsyncOpenAI, server: Server
    ) -> None:
        server.engine.answer = lambda request: [*b"hello", 256]
        async with client.responses.stream(model=MODEL, input="abc") as stream:
            text = [e.delta async for e in stream if e.type == "response.output_text.delta"]
            final = await stream.get_final_response()
        assert ("".join(text), final.output_text, final.status) == ("hello", "hello", "completed")

    async def test_an_answer_can_be_sent_back_as_input(
        self, client: openai.AsyncOpenAI, server: Server
    ) -> None:
        history: Any = [{"role": "user", "content": "abc"}]
        first = await client.responses.create(model=MODEL, input=history, max_output_tokens=4)
        history += [item.model_dump() for item in first.output]
        history += [{"role": "user", "content": "go on"}]
        await client.responses.create(model=MODEL, input=history, max_output_tokens=4)
        text = bytes(i for i in server.engine.seen[1].prompt_ids if i < 256).decode()
        assert text == "user: abc\nassistant: use\nuser: go on\n"

    async def test_refusals_are_the_clients_exceptions(self, client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as bad:
            await client.responses.create(model=MODEL, input="abc", max_output_tokens=0)
        assert (bad.value.param, bad.value.code) == ("max_output_tokens", "integer_below_min_value")
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.responses.create(model="other", input="abc")
        assert unknown.value.code == "model_not_found"

    async def test_nothing_is_stored(self, client: openai.AsyncOpenAI) -> None:
        first = await client.responses.create(model=MODEL, input="abc")
        with pytest.raises(openai.NotFoundError) as missing:
            await client.responses.retrieve(first.id)
        assert "stores no responses" in missing.value.message
        with pytest.raises(openai.NotFoundError):
            await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.cancel(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.input_items.list(first.id)


MESSAGE = {"role": "user", "content": "x"}
NO_SYNTAX = {"type": "grammar", "syntax": "ebnf", "definition": 'start = "x"'}
REFERENCE = {"type": "item_reference", "id": "msg_1"}

_MISSING_SCHEMA = ("missing_required_parameter", "text.format.schema")
_BAD_SCHEMA = ("unsupported_parameter", "text.format")

REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"previous_response_id": "resp_1"}, "unsupported_parameter", "previous_response_id"),
    ({"conversation": "conv_1"}, "unsupported_parameter", "conversation"),
    ({"background": True}, "unsupported_parameter", "background"),
    ({"prompt": {"id": "pmpt_1"}}, "unsupported_parameter", "prompt"),
    ({"moderation": {"model": "m"}}, "unsupported_parameter", "moderation"),
    ({"context_management": [{}]}, "unsupported_parameter", "context_management"),
    ({"include": ["what"]}, "invalid_value", "include[0]"),
    ({"truncation": "some"}, "invalid_value", "truncation"),
    ({"reasoning": {"summary": "long"}}, "invalid_value", "reasoning.summary"),
    ({"reasoning": {"context": "all_turns"}}, "unsupported_parameter", "reasoning.context"),
    ({"reasoning": {"mode": "pro"}}, "unsupported_parameter", "reasoning.mode"),
    ({"reasoning": {"what": 1}}, "unknown_parameter", "reasoning.what"),
    ({"max_output_tokens": 0}, "integer_below_min_value", "max_output_tokens"),
    ({"max_output_tokens": "4"}, "invalid_type", "max_output_tokens"),
    ({"max_tokens": 4}, "unknown_parameter", "max_tokens"),
    ({"messages": [MESSAGE]}, "unknown_parameter", "messages"),
    ({"temperature": 3}, "decimal_above_max_value", "temperature"),
    ({"chat_template": "x"}, "unknown_parameter", "chat_template"),
    ({"text": {"format": {"type": "yaml"}}}, "invalid_value", "text.format.type"),
    ({"text": {"format": {"type": "json_schema"}}}, *_MISSING_SCHEMA),
    ({"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, *_BAD_SCHEMA),
    ({"top_logprobs": 21}, "integer_above_max_value", "top_logprobs"),
    ({"top_logprobs": -1}, "integer_below_min_value", "top_logprobs"),
    ({"stream_options": {"include_obfuscation": True}}, "invalid_value", "stream_options"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "unsupported_parameter",
        "stream_options.include_obfuscation",
    ),
    ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type"),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, "unsupported_parameter", "tools[0].type"),
    ({"tools": [{}]}, "missing_required_parameter", "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].name"),
    ({"tools": [{"type": "function", "name": 1}]}, "invalid_type", "tools[0].name"),
    (
        {"tools": [{"type": "custom", "name": "f", "format": NO_SYNTAX}]},
        "unsupported_parameter",
        "tools[0].format",
    ),
    ({"tool_choice": {"type": "file_search"}}, "unsupported_parameter", "tool_choice.type"),
    ({"tool_choice": {"type": "function"}}, "missing_required_parameter", "tool_choice.name"),
    ({"tool_choice": {"type": "allowed_tools"}}, "missing_required_parameter", "tool_choice.mode"),
    (
        {"tool_choice": {"type": "allowed_tools", "mode": "required", "tools": []}},
        "empty_array",
        "tool_choice.tools",
    ),
    ({"input": None}, "invalid_type", "input"),
    ({"input": []}, "empty_array", "input"),
    ({"input": [1]}, "invalid_type", "input[0]"),
    ({"input": [{}]}, "missing_required_parameter", "input[0].role"),
    ({"input": [{"type": 5}]}, "invalid_type", "input[0].type"),
    ({"input": [REFERENCE]}, "unsupported_parameter", "input[0].type"),
    ({"input": [{"id": "msg_1"}]}, "unsupported_parameter", "input[0].type"),
    ({"input": [MESSAGE, {"type": "web_search_call"}]}, "unsupported_parameter", "input[1].type"),
    ({"input": [MESSAGE | {"role": "alien"}]}, "invalid_value", "input[0].role"),
    ({"input": [MESSAGE | {"what": 1}]}, "unknown_parameter", "input[0].what"),
    ({"input": [MESSAGE | {"role": 123}]}, "invalid_type", "input[0].role"),
    ({"input": [{"role": "user"}]}, "missing_required_parameter", "input[0].content"),
    ({"input": [MESSAGE | {"content": 5}]}, "invalid_type", "input[0].content"),
    ({"input": [MESSAGE | {"content": ["x"]}]}, "invalid_type", "input[0].content[0]"),
    ({"input": {"role": "user"}}, "invalid_type", "input"),
    ({"input": [{"role": "user", "content": []}]}, "empty_array", "input[0].content"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]},
        "unsupported_parameter",
        "input[0].content[0].type",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
        "missing_required_parameter",
        "input[0].content[0].text",
    ),
    (
        {"instructions": "i", "input": [MESSAGE, {"role": "alien", "content": "x"}]},
        "invalid_value",
        "input[1].role",
    ),
    ({"input": [{"type": "function_call"}]}, "missing_required_parameter", "input[0].call_id"),
    (
        {"input": [{"type": "reasoning", "encrypted_content": "gAAAA"}]},
        "invalid_value",
        "input[0].encrypted_content",
    ),
    ({"input": "x" * 10_000}, "context_length_exceeded", "input"),
    ({"input": "x" * 510}, "context_length_exceeded", "input"),
    ({"input": [MESSAGE] * 600}, "context_length_exceeded", "input"),
]  # fmt: skip


@pytest.mark.parametrize("path", [RESPONSES, f"{RESPONSES}/input_tokens"])
@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: f"{case[2]}={json.dumps(case[0])}"[:60])
async def test_a_bad_field_is_refused_by_the_name_that_the_client_wrote(
    server: Server, path: str, case: tuple[dict[str, Any], str, str]
) -> None:
    more, code, param = case
    status, answer = await server.post(path, body_for(RESPONSES) | more)
    assert status == 400
    assert (answer["error"]["code"], answer["error"]["param"]) == (code, param)
    assert server.engine.seen == []
    assert "messages" not in answer["error"]["message"] or "messages" in more or param == "input"
    assert (await ask(server, body_for(RESPONSES))).output_text == "use"


def test_fields_that_mean_the_same_as_in_chat_have_the_same_type() -> None:
    chat, ours = (
        {field.name: field.type for field in msgspec.structs.fields(body)}
        for body in (ChatBody, ResponsesBody)
    )
    assert {name: ours[name] for name in SAME_IN_CHAT} == {
        name: chat[name] for name in SAME_IN_CHAT
    }

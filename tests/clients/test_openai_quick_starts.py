"""What the first pages of OpenAI's client show, as they show it: the address and the key come from
the environment, the model has a name of OpenAI's, which the server has as an alias. Only what so
small a model would not do by itself is asked for: that it calls a function, once, and that its
texts are short.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from tests.clients.test_clients import ANSWER
from tests.e2e.server import Server

MODEL = "gpt-5.2"
QUESTION = "What is the capital of France?"
DEVELOPER: Any = [
    {"role": "developer", "content": "You are a helpful assistant."},
    {"role": "user", "content": QUESTION},
]
USER: Any = [{"role": "user", "content": QUESTION}]
WEATHER: Any = [{"role": "user", "content": "What is the weather like in Paris today?"}]


class GetWeather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    unit: Literal["celsius", "fahrenheit"]


class Step(BaseModel):
    explanation: str = Field(max_length=12)
    output: str = Field(max_length=6)


class Solution(BaseModel):
    steps: list[Step] = Field(min_length=1, max_length=1)
    answer: str = Field(max_length=6)


EQUATION: Any = [
    {"role": "system", "content": "You are a helpful math tutor."},
    {"role": "user", "content": "solve 8x + 31 = 2"},
]
FUNCTION: Any = {"name": "GetWeather", "parameters": GetWeather.model_json_schema()}


@pytest.fixture
def surroundings(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")


@pytest.fixture
def client(surroundings: None) -> Iterator[OpenAI]:
    with OpenAI() as opened:
        yield opened


@pytest.fixture
async def waiting(surroundings: None) -> AsyncIterator[AsyncOpenAI]:
    """The asynchronous client."""
    async with AsyncOpenAI() as opened:
        yield opened


class TestChat:
    def test_an_answer(self, client: OpenAI) -> None:
        completion = client.chat.completions.create(model=MODEL, messages=USER)
        assert completion.choices[0].message.content == ANSWER

    def test_an_answer_to_a_developers_message(self, client: OpenAI) -> None:
        completion = client.chat.completions.create(model=MODEL, messages=DEVELOPER)
        assert "Paris" in (completion.choices[0].message.content or "")

    async def test_the_asynchronous_client(self, waiting: AsyncOpenAI) -> None:
        completion = await waiting.chat.completions.create(model=MODEL, messages=USER)
        assert completion.choices[0].message.content == ANSWER

    def test_a_stream(self, client: OpenAI) -> None:
        stream = client.chat.completions.create(model=MODEL, messages=USER, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER

    async def test_an_asynchronous_stream(self, waiting: AsyncOpenAI) -> None:
        stream = await waiting.chat.completions.create(model=MODEL, messages=USER, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == ANSWER

    def test_the_stream_helper(self, client: OpenAI) -> None:
        with client.chat.completions.stream(model=MODEL, messages=USER) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
            completion = stream.get_final_completion()
        assert "".join(deltas) == completion.choices[0].message.content == ANSWER

    def test_parse(self, client: OpenAI) -> None:
        completion = client.chat.completions.parse(
            model=MODEL, messages=EQUATION, response_format=Solution
        )
        assert isinstance(completion.choices[0].message.parsed, Solution)

    def test_parse_where_it_once_was(self, client: OpenAI) -> None:
        completion = client.beta.chat.completions.parse(
            model=MODEL, messages=EQUATION, response_format=Solution
        )
        assert isinstance(completion.choices[0].message.parsed, Solution)

    async def test_asynchronous_parse(self, waiting: AsyncOpenAI) -> None:
        completion = await waiting.chat.completions.parse(
            model=MODEL, messages=EQUATION, response_format=Solution
        )
        assert isinstance(completion.choices[0].message.parsed, Solution)

    def test_a_function_of_a_class(self, client: OpenAI) -> None:
        completion = client.chat.completions.parse(
            model=MODEL,
            messages=WEATHER,
            tools=[openai.pydantic_function_tool(GetWeather)],
            tool_choice="required",
            parallel_tool_calls=False,
        )
        (call,) = completion.choices[0].message.tool_calls or []
        assert isinstance(call.function.parsed_arguments, GetWeather)

    def test_a_loop_with_a_tool(self, client: OpenAI) -> None:
        messages = list(WEATHER)
        tools: Any = [{"type": "function", "function": FUNCTION}]
        first = client.chat.completions.create(
            model=MODEL,
            messages=messages,
            tools=tools,
            tool_choice="required",
            parallel_tool_calls=False,
        )
        assert first.choices[0].finish_reason == "tool_calls"
        messages.append(first.choices[0].message)
        for call in first.choices[0].message.tool_calls or []:
            assert call.type == "function"
            GetWeather.model_validate_json(call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "14 degrees"})
        second = client.chat.completions.create(
            model=MODEL, messages=messages, tools=tools, tool_choice="none", max_tokens=20
        )
        assert len(messages) == 3
        assert second.choices[0].message.content

    def test_a_function_of_the_old_kind(self, client: OpenAI) -> None:
        completion = client.chat.completions.create(
            model=MODEL,
            messages=WEATHER,
            functions=[FUNCTION],
            function_call={"name": "GetWeather"},
        )
        assert completion.choices[0].finish_reason == "function_call"
        call = completion.choices[0].message.function_call
        assert call is not None
        GetWeather.model_validate_json(call.arguments)

    def test_the_raw_response(self, client: OpenAI) -> None:
        response = client.chat.completions.with_raw_response.create(model=MODEL, messages=USER)
        assert response.headers["x-request-id"]
        assert response.parse().choices[0].message.content == ANSWER


class TestResponses:
    def test_an_answer(self, client: OpenAI) -> None:
        assert client.responses.create(model=MODEL, input=QUESTION).output_text == ANSWER

    def test_an_answer_with_instructions(self, client: OpenAI) -> None:
        response = client.responses.create(
            model=MODEL, instructions="You are a helpful assistant.", input=QUESTION
        )
        assert "Paris" in response.output_text

    async def test_the_asynchronous_client(self, waiting: AsyncOpenAI) -> None:
        response = await waiting.responses.create(model=MODEL, input=QUESTION)
        assert response.output_text == ANSWER

    async def test_an_asynchronous_stream(self, waiting: AsyncOpenAI) -> None:
        stream = await waiting.responses.create(model=MODEL, input=QUESTION, stream=True)
        events = [event async for event in stream]
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == ANSWER

    def test_the_stream_helper(self, client: OpenAI) -> None:
        with client.responses.stream(model=MODEL, input=EQUATION, text_format=Solution) as stream:
            deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
            response = stream.get_final_response()
        assert isinstance(response.output_parsed, Solution)
        assert Solution.model_validate_json("".join(deltas)) == response.output_parsed

    def test_parse(self, client: OpenAI) -> None:
        response = client.responses.parse(model=MODEL, input=EQUATION, text_format=Solution)
        assert isinstance(response.output_parsed, Solution)

    async def test_asynchronous_parse(self, waiting: AsyncOpenAI) -> None:
        response = await waiting.responses.parse(model=MODEL, input=EQUATION, text_format=Solution)
        assert isinstance(response.output_parsed, Solution)

    def test_a_function_of_a_class(self, client: OpenAI) -> None:
        response = client.responses.parse(
            model=MODEL,
            input=WEATHER,
            tools=[openai.pydantic_function_tool(GetWeather)],
            tool_choice="required",
            parallel_tool_calls=False,
        )
        (call,) = [item for item in response.output if item.type == "function_call"]
        assert isinstance(call.parsed_arguments, GetWeather)

    def test_a_loop_with_a_tool(self, client: OpenAI) -> None:
        items = list(WEATHER)
        tools: Any = [{"type": "function", **FUNCTION}]
        first = client.responses.create(
            model=MODEL,
            input=items,
            tools=tools,
            tool_choice="required",
            parallel_tool_calls=False,
        )
        items += first.output
        for item in first.output:
            if item.type == "function_call":
                GetWeather.model_validate_json(item.arguments)
                output = json.dumps({"degrees": 14})
                items.append(
                    {"type": "function_call_output", "call_id": item.call_id, "output": output}
                )
        second = client.responses.create(
            model=MODEL, input=items, tools=tools, tool_choice="none", max_output_tokens=20
        )
        assert len(items) == 3
        assert second.output_text

    def test_tokens_are_counted(self, client: OpenAI) -> None:
        counted = client.responses.input_tokens.count(model=MODEL, input=QUESTION)
        response = client.responses.create(model=MODEL, input=QUESTION)
        assert response.usage is not None
        assert counted.input_tokens == response.usage.input_tokens

"""What the first pages of Anthropic's client show, as they show it: the address and the key come
from the environment, the model has a name of Anthropic's, which the server has as an alias. Only
what so small a model would not do by itself is asked for: that it calls a function, once, and that
its texts are short.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import pytest
from anthropic import Anthropic, AsyncAnthropic, beta_async_tool, beta_tool
from pydantic import BaseModel, Field

from tests.clients.test_clients import ANSWER
from tests.e2e.server import Server

MODEL = "claude-sonnet-5-5"
MAX_TOKENS = 1024
USER: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = [{"role": "user", "content": "What is the weather like in Paris?"}]
NAMED: Any = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
TOOL: Any = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
    },
}


class Contact(BaseModel):
    name: str = Field(max_length=20)
    plan: Literal["basic", "enterprise"]
    demo_requested: bool


@pytest.fixture
def surroundings(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")


@pytest.fixture
def client(surroundings: None) -> Iterator[Anthropic]:
    with Anthropic() as opened:
        yield opened


@pytest.fixture
async def waiting(surroundings: None) -> AsyncIterator[AsyncAnthropic]:
    """The asynchronous client."""
    async with AsyncAnthropic() as opened:
        yield opened


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message(client: Anthropic) -> None:
    message = client.messages.create(model=MODEL, max_tokens=MAX_TOKENS, messages=USER)
    assert (text_of(message), message.stop_reason) == (ANSWER, "end_turn")


async def test_the_asynchronous_client(waiting: AsyncAnthropic) -> None:
    message = await waiting.messages.create(model=MODEL, max_tokens=MAX_TOKENS, messages=USER)
    assert text_of(message) == ANSWER


def test_a_stream(client: Anthropic) -> None:
    stream = client.messages.create(model=MODEL, max_tokens=MAX_TOKENS, messages=USER, stream=True)
    kinds = [event.type for event in stream]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")


async def test_an_asynchronous_stream(waiting: AsyncAnthropic) -> None:
    stream = await waiting.messages.create(
        model=MODEL, max_tokens=MAX_TOKENS, messages=USER, stream=True
    )
    kinds = [event.type async for event in stream]
    assert kinds.count("content_block_delta") > 3


def test_the_stream_helper(client: Anthropic) -> None:
    with client.messages.stream(model=MODEL, max_tokens=MAX_TOKENS, messages=USER) as stream:
        parts = list(stream.text_stream)
        message = stream.get_final_message()
    assert "".join(parts) == text_of(message) == ANSWER


async def test_the_asynchronous_stream_helper(waiting: AsyncAnthropic) -> None:
    async with waiting.messages.stream(model=MODEL, max_tokens=MAX_TOKENS, messages=USER) as stream:
        parts = [part async for part in stream.text_stream]
        message = await stream.get_final_message()
    assert "".join(parts) == text_of(message) == ANSWER


def test_tokens_are_counted(client: Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=USER, system="Be brief.")
    assert counted.input_tokens > 0


async def test_tokens_are_counted_asynchronously(waiting: AsyncAnthropic) -> None:
    counted = await waiting.messages.count_tokens(model=MODEL, messages=WEATHER, tools=[TOOL])
    assert counted.input_tokens > 0


def test_a_loop_with_a_tool(client: Anthropic) -> None:
    first = client.messages.create(
        model=MODEL, max_tokens=MAX_TOKENS, messages=WEATHER, tools=[TOOL], tool_choice=NAMED
    )
    assert first.stop_reason == "tool_use"
    (use,) = [block for block in first.content if block.type == "tool_use"]
    assert use.input["city"] in ("Paris", "Rome")
    result: Any = {
        "type": "tool_result",
        "tool_use_id": use.id,
        "content": [{"type": "text", "text": "It is sunny."}],
    }
    second = client.messages.create(
        model=MODEL,
        max_tokens=20,
        messages=[
            *WEATHER,
            {"role": first.role, "content": first.content},
            {"role": "user", "content": [result]},
        ],
        tools=[TOOL],
        tool_choice={"type": "none"},
    )
    assert text_of(second)


def test_the_tool_runner(client: Anthropic) -> None:
    asked = []

    @beta_tool
    def get_weather(city: Literal["Paris", "Rome"]) -> str:
        """The weather in a city.

        Args:
            city: The city.
        """
        asked.append(city)
        return f"It is sunny in {city}."

    runner = client.beta.messages.tool_runner(
        model=MODEL,
        max_tokens=MAX_TOKENS,
        messages=WEATHER,
        tools=[get_weather],
        tool_choice=NAMED,
        max_iterations=2,
    )
    messages = list(runner)
    assert [message.stop_reason for message in messages] == ["tool_use", "tool_use"]
    assert asked[0] in ("Paris", "Rome")


async def test_the_asynchronous_tool_runner(waiting: AsyncAnthropic) -> None:
    asked = []

    @beta_async_tool
    async def get_weather(city: Literal["Paris", "Rome"]) -> str:
        """The weather in a city.

        Args:
            city: The city.
        """
        asked.append(city)
        return f"It is sunny in {city}."

    runner = waiting.beta.messages.tool_runner(
        model=MODEL,
        max_tokens=MAX_TOKENS,
        messages=WEATHER,
        tools=[get_weather],
        tool_choice=NAMED,
        max_iterations=2,
        stream=True,
    )
    messages = [await stream.get_final_message() async for stream in runner]
    assert [message.stop_reason for message in messages] == ["tool_use", "tool_use"]
    assert asked[0] in ("Paris", "Rome")


def test_parse(client: Anthropic) -> None:
    message = client.messages.parse(
        model=MODEL,
        max_tokens=MAX_TOKENS,
        messages=[{"role": "user", "content": "John wants a demo of the enterprise plan."}],
        output_format=Contact,
    )
    assert isinstance(message.parsed_output, Contact)


async def test_asynchronous_parse(waiting: AsyncAnthropic) -> None:
    message = await waiting.messages.parse(
        model=MODEL,
        max_tokens=MAX_TOKENS,
        messages=[{"role": "user", "content": "John wants a demo of the enterprise plan."}],
        output_format=Contact,
    )
    assert isinstance(message.parsed_output, Contact)


def test_the_raw_response(client: Anthropic) -> None:
    response = client.messages.with_raw_response.create(
        model=MODEL, max_tokens=MAX_TOKENS, messages=USER
    )
    assert response.headers["request-id"]
    assert text_of(response.parse()) == ANSWER


def test_the_models_are_listed(client: Anthropic) -> None:
    assert [model.id for model in client.models.list()]

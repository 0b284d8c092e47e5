"""Anthropic's client against a real server with the real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import pytest
from anthropic.types import MessageParam, TextBlock, ToolParam, ToolUseBlock, Usage
from pydantic import BaseModel

from tests.e2e.server import Server
from tests.e2e.test_openai_client import ANSWER, LONG, MODEL

pytestmark = pytest.mark.model
FRANCE: list[MessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0}


class City(BaseModel):
    name: Literal["Paris", "Rome"]
    is_capital: bool


@pytest.fixture
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=server.url, api_key="none", max_retries=0, timeout=120
    ) as client:
        yield client


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if isinstance(block, TextBlock))


def num_prompt(usage: Usage) -> int:
    """The tokens of the prompt, wherever they came from."""
    read, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    return usage.input_tokens + (read or 0) + (written or 0)


def test_a_message_is_answered_whole_and_streamed(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(model=MODEL, max_tokens=40, messages=FRANCE, extra_body=GREEDY)
    assert (text_of(whole), whole.stop_reason) == (ANSWER, "end_turn")
    with claude.messages.stream(
        model=MODEL, max_tokens=40, messages=FRANCE, extra_body=GREEDY
    ) as stream:
        assert stream.get_final_text() == ANSWER


def test_an_answer_that_was_begun_is_continued(claude: anthropic.Anthropic) -> None:
    begun: list[MessageParam] = [*FRANCE, {"role": "assistant", "content": "The capital of"}]
    message = claude.messages.create(model=MODEL, max_tokens=40, messages=begun, extra_body=GREEDY)
    assert text_of(message) == ANSWER.removeprefix("The capital of")


def test_a_prompt_is_counted_as_it_is_computed(claude: anthropic.Anthropic) -> None:
    counted = claude.messages.count_tokens(model=MODEL, messages=FRANCE, system=LONG)
    message = claude.messages.create(model=MODEL, max_tokens=1, messages=FRANCE, system=LONG)
    assert counted.input_tokens == num_prompt(message.usage)


def test_a_line_that_changes_with_every_request_does_not_void_the_cache(
    claude: anthropic.Anthropic,
) -> None:
    for number in range(2):
        line = f"x-anthropic-billing-header: cc_version=2.1.{number}; cch={number}f00d;"
        message = claude.messages.create(
            model=MODEL,
            max_tokens=1,
            messages=[{"role": "user", "content": "Where is the pool?"}],
            system=[
                {"type": "text", "text": line},
                {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}},
            ],
        )
    usage = message.usage
    assert usage.cache_read_input_tokens == num_prompt(usage) - 1
    assert (usage.input_tokens, usage.cache_creation_input_tokens) == (0, 1)


WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def test_an_agent_that_calls_twelve_tools_finds_its_prompts_in_the_cache(
    claude: anthropic.Anthropic,
) -> None:
    turns: list[MessageParam] = [{"role": "user", "content": "What is the weather like?"}]
    usages = []
    for _ in range(12):
        message = claude.messages.create(
            model=MODEL,
            max_tokens=100,
            system=LONG,
            messages=turns,
            tools=[WEATHER],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
            extra_body=GREEDY,
        )
        assert message.stop_reason == "tool_use"
        (call,) = [block for block in message.content if isinstance(block, ToolUseBlock)]
        assert call.input["city"] in ("Paris", "Rome", "Oslo")
        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "It is sunny."}
        turns += [
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [result]},
        ]
        usages.append(message.usage)
    cached = sum(usage.cache_read_input_tokens or 0 for usage in usages)
    share = cached / sum(map(num_prompt, usages))
    assert share >= 0.9, [(usage.cache_read_input_tokens, num_prompt(usage)) for usage in usages]


def test_an_answer_can_be_made_to_obey_a_schema(claude: anthropic.Anthropic) -> None:
    message = claude.messages.parse(
        model=MODEL, max_tokens=100, messages=FRANCE, output_format=City, extra_body=GREEDY
    )
    assert isinstance(message.parsed_output, City)


def test_a_streamed_call_is_put_together_by_the_client(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(
        model=MODEL,
        max_tokens=100,
        messages=FRANCE,
        tools=[WEATHER],
        tool_choice={"type": "tool", "name": "get_weather"},
    ) as stream:
        message = stream.get_final_message()
    calls = [block for block in message.content if block.type == "tool_use"]
    assert {call.name for call in calls} == {"get_weather"}
    assert all(set(call.input) == {"city"} for call in calls)

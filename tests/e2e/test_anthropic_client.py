"""Anthropic's client against a real server with the real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import MessageParam, TextBlock, Usage

from tests.e2e.server import Server
from tests.e2e.test_openai_client import ANSWER, LONG, MODEL

pytestmark = pytest.mark.model
FRANCE: list[MessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0}


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

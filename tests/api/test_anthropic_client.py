"""Anthropic's own client against the application: whole, streamed, counting, beta; every answer is
read strictly by its models.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, MessageParam, RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.api.conftest import ALIAS, MESSAGES, MODEL, Server, body_for

QUESTION: list[MessageParam] = [{"role": "user", "content": "abc"}]


@pytest.fixture
async def client(server: Server) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=server.url, api_key="none", max_retries=0
    ) as client:
        yield client


def assert_nothing_unknown(value: object) -> None:
    """The client's models know every member of the answer."""
    if isinstance(value, BaseModel):
        assert not value.model_extra, value
        for name in type(value).model_fields:
            assert_nothing_unknown(getattr(value, name))
    elif isinstance(value, list):
        for each in value:
            assert_nothing_unknown(each)


async def test_the_synchronous_client_is_served(server: Server) -> None:
    def talk() -> tuple[str, str]:
        with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
            message = client.messages.create(model=MODEL, max_tokens=4, messages=QUESTION)
            with client.messages.stream(model=MODEL, max_tokens=4, messages=QUESTION) as stream:
                streamed = "".join(stream.text_stream)
            return "".join(
                block.text for block in message.content if block.type == "text"
            ), streamed

    assert await asyncio.to_thread(talk) == ("use", "use")


async def test_a_message_has_the_clients_shape(server: Server) -> None:
    _, answer = await server.post(MESSAGES, body_for(MESSAGES))
    message = TypeAdapter(Message).validate_python(answer, strict=True)
    assert_nothing_unknown(message)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 4)


async def test_the_events_of_a_stream_have_the_clients_shapes(server: Server) -> None:
    events: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    body = body_for(MESSAGES, stream=True)
    async with server.session.post(server.url + MESSAGES, json=body) as response:
        lines = (await response.text()).split("\n")
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data")]
    for each in data:
        if each["type"] != "ping":
            assert_nothing_unknown(events.validate_python(each, strict=True))


async def test_a_stream_adds_up_to_the_message(client: anthropic.AsyncAnthropic) -> None:
    async with client.messages.stream(model=MODEL, max_tokens=4, messages=QUESTION) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == "use"
    assert final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 4
    assert final.usage.input_tokens == 11


async def test_tokens_are_counted(client: anthropic.AsyncAnthropic) -> None:
    counted = await client.messages.count_tokens(model=MODEL, messages=QUESTION, system="s")
    message = await client.messages.create(model=MODEL, max_tokens=1, messages=QUESTION, system="s")
    assert counted.input_tokens == message.usage.input_tokens


async def test_names_that_agents_insist_on_are_served_and_not_listed(
    client: anthropic.AsyncAnthropic,
) -> None:
    message = await client.messages.create(
        model="claude-opus-9[1m]", max_tokens=4, messages=QUESTION
    )
    assert message.model == MODEL
    models = [model async for model in client.models.list()]
    assert [model.id for model in models] == [MODEL, ALIAS]
    found = await client.models.retrieve("claude-opus-9")
    assert (found.display_name, found.max_input_tokens) == ("claude-opus-9", 512)
    with pytest.raises(anthropic.NotFoundError):
        await client.models.retrieve("other-claude-9")


async def test_the_beta_client_is_served(client: anthropic.AsyncAnthropic) -> None:
    message = await client.beta.messages.create(
        model=MODEL,
        max_tokens=4,
        messages=[{"role": "user", "content": "abc"}],
        betas=["prompt-caching-2024-07-31"],
        system=[{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    )
    assert message.usage.cache_creation_input_tokens
    assert message.usage.input_tokens == 0


async def test_an_answer_goes_back_as_it_came(
    client: anthropic.AsyncAnthropic, server: Server
) -> None:
    first = await client.messages.create(model=MODEL, max_tokens=4, messages=QUESTION)
    turns: list[MessageParam] = [
        *QUESTION,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": "and?"},
    ]
    await client.messages.create(model=MODEL, max_tokens=4, messages=turns)
    prompt = bytes(token for token in server.engine.seen[1].prompt_ids if token < 256).decode()
    assert prompt == "user: abc\nassistant: use\nuser: and?\n"


async def test_refusals_become_the_clients_exceptions(
    client: anthropic.AsyncAnthropic, server: Server
) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature") as bad:
        await client.messages.create(
            model=MODEL, max_tokens=4, messages=QUESTION, extra_body={"temperature": 3}
        )
    assert bad.value.request_id is not None
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.create(model="other", max_tokens=4, messages=QUESTION)
    server.engine.fail_at = 0
    with pytest.raises(anthropic.InternalServerError):
        await client.messages.create(model=MODEL, max_tokens=4, messages=QUESTION)
    server.engine.fail_at = 2
    with pytest.raises(anthropic.APIStatusError, match="the fake failed"):
        async with client.messages.stream(model=MODEL, max_tokens=4, messages=QUESTION) as stream:
            await stream.get_final_message()
    server.engine.fail_at = None
    server.engine.refuse_after = 0
    with pytest.raises(anthropic.APIStatusError, match="queue") as full:
        await client.messages.create(model=MODEL, max_tokens=4, messages=QUESTION)
    assert full.value.status_code == 503


async def test_the_refusal_of_a_thread_tells_the_clients_runner_of_tools_to_go_on_without(
    client: anthropic.AsyncAnthropic,
) -> None:
    with pytest.raises(anthropic.BadRequestError, match="thread") as refusal:
        await client.beta.messages.create(
            model=MODEL,
            max_tokens=4,
            messages=[{"role": "user", "content": "abc"}],
            thread={"type": "create"},
        )
    body: Any = refusal.value.body
    assert body["error"]["details"] == {
        "error_code": "thread_unsupported_request",
        "unsupported": ["thread"],
    }

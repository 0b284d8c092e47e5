"""The official client against the application: synchronous in a thread, asynchronous, streaming."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from radixserve.errors import Unavailable
from radixserve.front.stream import Stream
from tests.api.conftest import ALIAS, CHAT, COMPLETIONS, MODEL, Server, reference

MESSAGES: Any = [{"role": "user", "content": "abc"}]


@pytest.fixture
async def client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=server.url + "/v1", api_key="none", max_retries=0
    ) as client:
        yield client


def test_reference_answers_are_what_the_fake_says() -> None:
    assert (reference(CHAT), reference(COMPLETIONS)) == ("use", "abca")


async def test_the_synchronous_client_is_served(server: Server) -> None:
    def talk() -> tuple[str | None, str, str, str]:
        with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            chat = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4)
            chunks = client.chat.completions.create(
                model=MODEL, messages=MESSAGES, max_tokens=4, stream=True
            )
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            text = (
                client.completions.create(model=MODEL, prompt="abc", max_tokens=4).choices[0].text
            )
            parts = client.completions.create(model=MODEL, prompt="abc", max_tokens=4, stream=True)
            return (
                chat.choices[0].message.content,
                streamed,
                text,
                "".join(part.choices[0].text for part in parts),
            )

    assert await asyncio.to_thread(talk) == ("use", "use", "abca", "abca")


async def test_chat_answers_have_the_clients_shape(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_completion_tokens=4,
        logprobs=True,
        top_logprobs=1,
        n=2,
        user="u",
    )
    assert answer.id.startswith("chatcmpl-")
    assert [choice.message.role for choice in answer.choices] == ["assistant", "assistant"]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[1].top_logprobs[0].bytes == [ord("u")]


async def test_a_chat_stream_has_the_clients_shape(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "use"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


async def test_completions_have_the_clients_shape(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model=MODEL,
        prompt=[[97, 98], [99]],
        max_tokens=2,
        logprobs=1,
        echo=True,
        stop=["z"],
        seed=5,
    )
    assert [choice.text for choice in answer.choices] == ["abab", "ccc"]
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == ["a", "b", "a", "b"]
    assert answer.choices[0].logprobs.token_logprobs == [None, -0.5, -0.5, -0.5]


async def test_extensions_go_in_the_extra_body(client: openai.AsyncOpenAI, server: Server) -> None:
    extra = {
        "top_k": 5,
        "min_p": 0.1,
        "ignore_eos": True,
        "repetition_penalty": 1.1,
        "min_tokens": 1,
    }
    await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=4, extra_body=extra
    )
    sampling = server.engine.seen[0].sampling
    assert (sampling.top_k, sampling.min_p, sampling.stop_token_ids) == (5, 0.1, ())


async def test_refusals_become_the_clients_exceptions(
    client: openai.AsyncOpenAI, server: Server
) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=3)
    assert (bad.value.param, bad.value.code) == ("temperature", "decimal_above_max_value")
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.completions.create(model="other", prompt="x")
    assert unknown.value.code == "model_not_found"
    server.engine.fail_at = 0
    with pytest.raises(openai.InternalServerError):
        await client.completions.create(model=MODEL, prompt="x")
    server.engine.fail_at = 2
    with pytest.raises(openai.APIError) as midway:
        async for _ in await client.completions.create(model=MODEL, prompt="x", stream=True):
            pass
    assert "the fake failed" in midway.value.message
    server.engine.fail_at = None


async def test_a_refused_client_comes_back_by_itself(
    client: openai.AsyncOpenAI, server: Server
) -> None:
    submit, refusals = server.engine.submit, iter([True])

    def refuse_once(stream: Stream) -> None:
        if next(refusals, False):
            raise Unavailable("full", retry_after=1)
        submit(stream)

    server.engine.submit = refuse_once  # type: ignore[method-assign]
    answer = await client.with_options(max_retries=1).completions.create(
        model=MODEL, prompt="abc", max_tokens=4
    )
    assert answer.choices[0].text == "abca"


async def test_leaving_a_stream_early_stops_the_work(
    client: openai.AsyncOpenAI, server: Server
) -> None:
    server.engine.hold_at = 3
    stream = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=9, stream=True
    )
    async for _ in stream:
        break
    await stream.close()
    async with asyncio.timeout(10):
        while server.engine.live:
            await asyncio.sleep(0.005)
    assert server.engine.aborted == [server.engine.seen[0].id]


async def test_models_are_listed(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL, ALIAS]
    assert (await client.models.retrieve(MODEL)).id == MODEL

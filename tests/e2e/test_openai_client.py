"""The official OpenAI client against a real server with the real model."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any

import openai
import pytest

from tests.e2e.server import Server

MODEL = "SmolLM2-135M-Instruct"
pytestmark = pytest.mark.model
FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
LONG = "You are a careful assistant for the guests of a small hotel by the sea. " * 12


def get(server: Server, path: str) -> str:
    with urllib.request.urlopen(server.url + path, timeout=30) as response:
        return str(response.read().decode())


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_tokens=40
    )
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens is not None


def test_a_streamed_chat_says_the_same_and_ends_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=FRANCE,
        temperature=0,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 8


def test_the_second_turn_finds_the_first_in_the_cache(client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": LONG},
        {"role": "user", "content": "Is breakfast included?"},
    ]
    first = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=16
    )
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And dinner?"},
    ]
    second = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=16
    )
    assert first.usage
    assert second.usage
    assert second.usage.prompt_tokens_details
    assert second.usage.prompt_tokens_details.cached_tokens is not None
    assert (
        first.usage.prompt_tokens
        <= second.usage.prompt_tokens_details.cached_tokens
        < second.usage.prompt_tokens
    )


def test_a_repeated_prompt_is_cached_but_for_its_last_token(client: openai.OpenAI) -> None:
    for _ in range(2):
        answer = client.completions.create(
            model=MODEL, prompt="Once upon a time, in a land", max_tokens=4, temperature=0
        )
    assert answer.usage
    assert answer.usage.prompt_tokens_details
    assert answer.usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens - 1


def test_choices_of_one_prompt_differ_and_come_again_with_the_seed(client: openai.OpenAI) -> None:
    def sample() -> list[str]:
        answer = client.completions.create(
            model=MODEL,
            prompt="The best thing about",
            n=3,
            max_tokens=12,
            temperature=1.0,
            top_p=0.95,
            seed=7,
        )
        return [choice.text for choice in answer.choices]

    texts = sample()
    assert len(set(texts)) == 3
    assert sample() == texts


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_tokens=40, stop=[" Paris"]
    )
    assert answer.choices[0].message.content == "The capital of France is"
    assert answer.choices[0].finish_reason == "stop"


def test_logprobs_come_with_every_token(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    assert all(
        len(token.top_logprobs) == 3 and token.logprob == token.top_logprobs[0].logprob
        for token in content
    )


def test_echo_with_logprobs_scores_the_prompt_alike_cold_and_warm(client: openai.OpenAI) -> None:
    def score() -> list[float | None] | None:
        answer = client.completions.create(
            model=MODEL,
            prompt="The sky is blue and the grass is green",
            max_tokens=1,
            temperature=0,
            echo=True,
            logprobs=0,
        )
        assert answer.choices[0].logprobs
        return answer.choices[0].logprobs.token_logprobs  # type: ignore[return-value]

    cold = score()
    assert cold is not None
    assert cold[0] is None
    assert all(value is not None and value < 0 for value in cold[1:])
    assert score() == cold


def test_token_ids_are_a_prompt_too(server: Server, client: openai.OpenAI) -> None:
    body = json.dumps({"prompt": "Two plus two is"}).encode()
    with urllib.request.urlopen(
        urllib.request.Request(server.url + "/tokenize", body), timeout=30
    ) as response:
        ids = json.loads(response.read())["tokens"]
    texts = [
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=6, temperature=0)
        .choices[0]
        .text
        for prompt in ("Two plus two is", ids)
    ]
    assert texts[0] == texts[1]


async def test_many_at_once_get_what_each_gets_alone(server: Server, client: openai.OpenAI) -> None:
    questions = [
        f"Name an animal that begins with the letter {letter}." for letter in "abcdefghijkl"
    ]

    def body(question: str) -> Any:
        return {
            "model": MODEL,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 12,
        }

    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0
    ) as many:
        answers = await asyncio.gather(
            *[many.chat.completions.create(**body(each)) for each in questions]
        )
    for question, together in zip(questions[:4], answers, strict=False):
        alone = client.chat.completions.create(**body(question))
        assert alone.choices[0].message.content == together.choices[0].message.content


def test_errors_are_the_ones_the_client_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such-model", messages=FRANCE)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=MODEL, messages=FRANCE, temperature=9)
    with pytest.raises(openai.BadRequestError) as refusal:
        client.completions.create(model=MODEL, prompt="word " * 9000)
    assert refusal.value.code == "context_length_exceeded"
    answer = client.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_tokens=40
    )
    assert answer.choices[0].message.content == ANSWER


def test_the_metrics_show_hits_and_misses(server: Server, client: openai.OpenAI) -> None:
    client.completions.create(
        model=MODEL, prompt="A prompt for the metrics alone", max_tokens=2, temperature=0
    )
    metrics = dict(
        line.rsplit(" ", 1)
        for line in get(server, "/metrics").splitlines()
        if line and not line.startswith("#")
    )
    assert float(metrics['radixserve_prompt_tokens_total{source="computed"}']) > 0
    assert float(metrics['radixserve_prompt_tokens_total{source="device"}']) > 0
    assert float(metrics['radixserve_prompt_tokens_total{source="disk"}']) == 0
    assert float(metrics["radixserve_requests_running"]) >= 0


def test_the_version_says_whether_hits_are_exact(server: Server) -> None:
    version = json.loads(get(server, "/version"))
    assert version["engine"]["exact"] is True

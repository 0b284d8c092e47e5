"""Streams go on, with the same text, while other clients post the worst grammars to a real server;
each of these is answered within the deadline. benchmarks/bench_hostile.py measures the speed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import aiohttp
import pytest

from tests.e2e.server import Server, running
from tests.grammar.hostile import HOSTILE, hostile_body

pytestmark = pytest.mark.model

DEADLINE = 3  # seconds for a grammar
SLACK = 60.0  # for a machine with other work, and for processes that start again
PATH = "/v1/completions"
STREAM = {"max_tokens": 150, "stream": True, "temperature": 0, "ignore_eos": True}
PROMPTS = ["Once upon a time", "The first rule is", "1, 2, 3,", "Dear reader,"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = ("--kv-budget", "512MiB", "--render-seconds", str(DEADLINE), "--log-level", "error")
    with running(*flags) as started:
        yield started


async def streamed(session: aiohttp.ClientSession, prompt: str) -> str:
    """The text of a stream, which has to be complete."""
    async with session.post(PATH, json=STREAM | {"prompt": prompt}) as answer:
        assert answer.status == 200
        body = await answer.text()
    *events, done = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    assert done == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    assert choices[-1]["finish_reason"] == "length"
    return "".join(choice["text"] for choice in choices)


async def refused(session: aiohttp.ClientSession, name: str) -> None:
    """Post a grammar that has to be refused in time, or sent away because streams leave no
    processor time for it.
    """
    begun = time.monotonic()
    async with session.post(PATH, data=hostile_body(name)) as answer:
        error = (await answer.json())["error"]
    assert answer.status in (400, 503), (name, error)
    codes = ("grammar_too_complex", "invalid_value", "invalid_json", "server_is_overloaded")
    assert error["code"] in codes, name
    assert time.monotonic() - begun < 2 * DEADLINE + SLACK, name


async def test_streams_are_the_same_while_the_worst_grammars_are_refused(server: Server) -> None:
    async with aiohttp.ClientSession(server.url) as session:
        alone = await asyncio.gather(*(streamed(session, prompt) for prompt in PROMPTS))
        posts = [asyncio.create_task(refused(session, name)) for name in HOSTILE]
        while not all(post.done() for post in posts):
            beside = await asyncio.gather(*(streamed(session, prompt) for prompt in PROMPTS))
            assert beside == alone
        for post in posts:
            post.result()
        good = {"prompt": "x", "max_tokens": 8, "structured_outputs": {"choice": ["yes", "no"]}}
        async with session.post(PATH, json=good) as answer:
            body = await answer.json()
        assert body["choices"][0]["text"] in ("yes", "no")

"""The engine of a real server is killed while it answers: what clients get is what they would have
got anyway.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from tests.e2e.server import Server, engines, running, spares

pytestmark = pytest.mark.model

MODEL = "embedded"
NUM_TOKENS = 48
SAMPLED = {"temperature": 0.9, "top_p": 0.95}
STORY = "Once upon a time in a small village by the sea there lived an old fisherman who"
# Only its length cuts it, so it is killed in the middle.
LONG_OBJECT = {
    "type": "json_schema",
    "json_schema": {
        "name": "story",
        "schema": {
            "type": "object",
            "properties": {
                "title": {"type": "string"},
                "text": {"type": "string", "minLength": 400},
            },
            "required": ["title", "text"],
        },
    },
}


@dataclass
class Answer:
    """Everything of an answer but its cuts into pieces: one text, list of logprobs and reason for
    each choice.
    """

    texts: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[Any]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    usage: tuple[int, int] = (0, 0)

    def take(self, body: dict[str, Any]) -> None:
        """Add a whole body or a chunk of a stream."""
        assert "error" not in body, body
        if usage := body.get("usage"):
            assert self.usage == (0, 0)
            self.usage = (usage["prompt_tokens"], usage["completion_tokens"])
        for choice in body["choices"]:
            index, part = choice["index"], choice.get("delta") or choice.get("message") or choice
            assert index not in self.reasons, "something came after the end"
            self.texts[index] = self.texts.get(index, "") + (
                part.get("content") or part.get("text") or ""
            )
            self.logprobs.setdefault(index, []).extend(logprobs_of(choice))
            if choice["finish_reason"] is not None:
                self.reasons[index] = choice["finish_reason"]


def logprobs_of(choice: dict[str, Any]) -> list[Any]:
    """One entry per token, for both endpoints."""
    given = choice.get("logprobs") or {"content": []}
    if "content" in given:
        return list(given["content"])
    return list(
        zip(
            *(given[name] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")),
            strict=True,
        )
    )


def bodies(stop: str) -> list[tuple[str, dict[str, Any]]]:
    """Of every kind one; the one that is not streamed first, so that it is served first."""
    chat = {
        "messages": [{"role": "user", "content": "Tell me something about the moon and the tides."}]
    }
    text = {"prompt": STORY}
    kinds: list[dict[str, Any]] = [
        chat | SAMPLED | {"stream": False, "logprobs": True, "top_logprobs": 3, "seed": 1},
        chat | {"temperature": 0, "logprobs": True},
        chat | SAMPLED | {"seed": 2, "n": 2, "logprobs": True, "top_logprobs": 1},
        chat
        | SAMPLED
        | {"seed": 3, "presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        chat | SAMPLED | {"seed": 6, "logprobs": True, "response_format": LONG_OBJECT},
        text | {"temperature": 0, "stop": [stop]},
        text | SAMPLED | {"seed": 4, "logprobs": 4},
        text | SAMPLED | {"seed": 5, "logprobs": 2, "echo": True},
        {"prompt": [STORY, "The capital of France is"], "temperature": 0, "n": 1, "min_tokens": 30},
    ]
    common = {"model": MODEL, "stream": True, "max_tokens": NUM_TOKENS}
    paths = {"messages": "/v1/chat/completions", "prompt": "/v1/completions"}
    return [(next(paths[key] for key in paths if key in kind), common | kind) for kind in kinds]


async def ask(
    session: aiohttp.ClientSession, path: str, body: dict[str, Any], on_piece: Callable[[], None]
) -> Answer:
    answer = Answer()
    if body["stream"]:
        body = body | {"stream_options": {"include_usage": True}}
    async with session.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        if not body["stream"]:
            answer.take(await response.json())
            return answer
        async for piece in pieces(response.content):
            answer.take(piece)
            on_piece()
    return answer


async def pieces(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a complete stream."""
    last = b""
    async for line in content:
        if line.startswith(b"data: "):
            last = line[6:].strip()
            if last != b"[DONE]":
                yield json.loads(last)
    assert last == b"[DONE]"


class Crowd:
    """All bodies at once; tells which of them have moved since when."""

    def __init__(
        self, session: aiohttp.ClientSession, asked: list[tuple[str, dict[str, Any]]]
    ) -> None:
        self.session = session
        self.asked = asked
        self.streamed = [i for i, (_, body) in enumerate(asked) if body["stream"]]
        self.moved: set[int] = set()
        self.tasks: list[asyncio.Task[Answer]] = []

    async def start(self) -> None:
        """The first one alone: it is not streamed, so that only its place tells that it moves when
        others do.
        """
        self._send(0)
        while await metric(self.session, "radixserve_requests_running") < 1:
            await asyncio.sleep(0.02)
        for i in range(1, len(self.asked)):
            self._send(i)

    def _send(self, i: int) -> None:
        path, body = self.asked[i]
        self.tasks.append(
            asyncio.create_task(ask(self.session, path, body, lambda: self.moved.add(i)))
        )

    async def all_have_moved(self) -> None:
        """Until each stream has got something new, or has ended."""
        self.moved.clear()
        await until(lambda: all(i in self.moved or self.tasks[i].done() for i in self.streamed))

    async def answers(self) -> list[Answer]:
        return await asyncio.gather(*self.tasks)


async def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def metric(session: aiohttp.ClientSession, name: str) -> float:
    async with session.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith(f"{name} ")]
    return float(value)


async def kill(server: Server) -> int:
    """Kill the engine and return when there is another process in its place, which loads; gives
    the process id of that one.
    """
    (pid,) = engines(server)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: engines(server) not in ([], [pid]), 60)
    return engines(server)[0]


async def until_spare_is_ready(server: Server) -> None:
    await until(lambda: any("is ready to take over" in line for line in server.lines))


async def disturb(server: Server, crowd: Crowd, first_seconds: float, more_seconds: float) -> None:
    """Let the engine die after so many seconds, again while it loads, and again when all have gone
    on. A spare takes over at the first death. At the second there is none yet.
    """
    (spare,) = spares(server)
    await asyncio.sleep(first_seconds)
    assert await kill(server) == spare
    await kill(server)
    await crowd.all_have_moved()
    await asyncio.sleep(more_seconds)
    assert not all(task.done() for task in crowd.tasks), "the last kill would show nothing"
    await kill(server)


async def a_stop_string(session: aiohttp.ClientSession) -> str:
    """Something in the middle of what the model will say."""
    body = {
        "model": MODEL,
        "prompt": STORY,
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "stream": False,
    }
    text = (await ask(session, "/v1/completions", body, lambda: None)).texts[0]
    return text[100:108]


async def undisturbed_and_disturbed(
    server: Server, session: aiohttp.ClientSession, asked: list[tuple[str, dict[str, Any]]]
) -> tuple[list[Answer], list[Answer]]:
    crowd, again = Crowd(session, asked), Crowd(session, asked)
    began = time.monotonic()
    await crowd.start()
    undisturbed = await crowd.answers()
    seconds = time.monotonic() - began
    await until_spare_is_ready(server)
    await again.start()
    moments = random.uniform(0.0, 0.3) * seconds, random.uniform(0.0, 0.05) * seconds
    print(f"killed after {moments} seconds")
    await disturb(server, again, *moments)
    return undisturbed, await again.answers()


async def test_streams_and_bodies_are_what_they_are_without_a_death() -> None:
    with running(
        *("--served-model-name", MODEL, "--kv-budget", "256MiB", "--log-level", "info"),
        *("--spare-engine", "on"),
    ) as server:
        async with aiohttp.ClientSession(
            server.url, timeout=aiohttp.ClientTimeout(total=200)
        ) as session:
            asked = bodies(await a_stop_string(session))
            undisturbed, disturbed = await undisturbed_and_disturbed(server, session, asked)
            assert await metric(session, 'radixserve_engine_restarts_total{cause="crash"}') == 3
            assert await metric(session, "radixserve_requests_resumed_total") > 0
    for (_, body), expected, answer in zip(asked, undisturbed, disturbed, strict=True):
        assert answer == expected, body
    assert {reason for answer in disturbed for reason in answer.reasons.values()} == {
        "stop",
        "length",
    }

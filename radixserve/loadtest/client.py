"""One request over HTTP, streamed or not, and its answer.

Knows the wire format of the OpenAI API and of errors; knows nothing of workloads, load or reports.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp

from radixserve.loadtest.session import Json

UNSEEN = ("reasoning_content", "reasoning", "tool_calls")  # tokens that are not part of the text


class Refused(Exception):
    """The answer is not usable. `kind` can be counted; the message is the server's."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(slots=True)
class Answer:
    """The part of an answer that has arrived. It is filled piece by piece, so it is kept if the
    rest never arrives.
    """

    status: int | None = None
    texts: dict[int, str] = field(default_factory=dict)  # by choice
    finished: set[int] = field(default_factory=set)  # choices with a finish_reason
    usage: Json = field(default_factory=dict)
    cached_tokens: int | None = None  # None: the server does not report it
    arrivals: dict[int, list[float]] = field(
        default_factory=dict
    )  # perf_counter() of each piece of a choice, its reasoning and tool calls included

    def take(self, message: Json) -> None:
        """Add a chunk of a stream, or a whole answer."""
        if "error" in message:
            raise Refused("error in answer", str(message["error"]["message"]))
        if usage := message.get("usage"):
            self.usage = usage
            self.cached_tokens = (usage.get("prompt_tokens_details") or {}).get(
                "cached_tokens", self.cached_tokens
            )
        if self.cached_tokens is None and "timings" in message:  # llama.cpp
            self.cached_tokens = message["timings"].get("cache_n")
        for choice in message.get("choices", ()):
            part = choice.get("delta") or choice.get("message") or choice
            text = part.get("content") or part.get("text") or ""
            index = choice.get("index", 0)
            self.texts[index] = self.texts.get(index, "") + text
            if text or any(part.get(name) for name in UNSEEN):
                self.arrivals.setdefault(index, []).append(time.perf_counter())
            if choice.get("finish_reason"):
                self.finished.add(index)

    def ordered_texts(self) -> list[str]:
        return [text for _, text in sorted(self.texts.items())]


async def ask(
    session: aiohttp.ClientSession,
    path: str,
    body: Json,
    answer: Answer,
    pause_seconds: float = 0.0,
) -> None:
    """POST `body` and fill `answer`, until it is complete. A slow reader pauses after each piece.

    Raises:
        Refused: an HTTP error, an error in the stream, or a stream that ends early.
        aiohttp.ClientError, TimeoutError: the connection failed.
    """
    async with session.post(path, json=body) as response:
        answer.status = response.status
        if response.status != 200:
            raise Refused(
                f"http {response.status}", _error_message(await response.text(errors="replace"))
            )
        if body.get("stream"):
            async for data in _events(response.content):
                if data != b"[DONE]":  # not every server sends it, so finish_reason decides
                    _take(answer, data)
                if pause_seconds:
                    await asyncio.sleep(pause_seconds)
        else:
            _take(answer, await response.read())
    missing = set(range(body.get("n", 1))) - answer.finished
    if missing:
        raise Refused("incomplete answer", f"choices without a finish_reason: {sorted(missing)}")


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The `data:` fields of server-sent events, without a limit on their length."""
    rest = b""
    async for part in content.iter_any():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _take(answer: Answer, data: bytes) -> None:
    try:
        answer.take(json.loads(data))
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise Refused("not an answer", data[:200].decode(errors="replace")) from error


def _error_message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return text[:200]


GARBAGE = (
    b"",
    b"\x00\xff\xfe\x80 no text at all",
    b'{"model": "x", "messages": [{"role": "user", "content": "cut of',
    b"[1, 2, 3]",
    b'{"model": 7, "messages": "hello", "max_tokens": "many"}',
    b'{"model": "x", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
)


async def send_garbage(session: aiohttp.ClientSession, rng: random.Random, answer: Answer) -> None:
    """POST something that is not a valid request. Raises the exceptions of `ask` if the server does
    not refuse it with a client error.
    """
    data = rng.choice(GARBAGE)
    async with session.post(
        "chat/completions", data=data, headers={"Content-Type": "application/json"}
    ) as response:
        answer.status = response.status
        text = await response.text(errors="replace")
    if not 400 <= response.status < 500:
        raise Refused(
            f"http {response.status} to garbage", f"{data[:40]!r} was answered by {text[:150]!r}"
        )

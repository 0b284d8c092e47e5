"""One request over HTTP, streamed or not, and what came of it.

Knows the wire format of the OpenAI API and of errors; knows nothing of workloads, load or reports.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

Json = dict[str, Any]


class Refused(Exception):
    """The answer is not usable: `kind` can be counted, the message is what the server said."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(slots=True)
class Answer:
    """What has arrived so far; filled while it arrives, so that it is there even if the rest never comes."""

    status: int | None = None
    texts: dict[int, str] = field(default_factory=dict)  # by choice
    finished: set[int] = field(default_factory=set)  # choices with a finish_reason
    usage: Json = field(default_factory=dict)
    arrivals: list[float] = field(default_factory=list)  # perf_counter() of each piece of text

    def take(self, message: Json) -> None:
        """Add a chunk of a stream, or a whole answer."""
        if "error" in message:
            raise Refused("error in answer", str(message["error"]["message"]))
        self.usage = message.get("usage") or self.usage
        for choice in message.get("choices", ()):
            part = choice.get("delta") or choice.get("message") or choice
            text = part.get("content") or part.get("text") or ""
            index = choice.get("index", 0)
            self.texts[index] = self.texts.get(index, "") + text
            if text:
                self.arrivals.append(time.perf_counter())
            if choice.get("finish_reason"):
                self.finished.add(index)

    def ordered_texts(self) -> list[str]:
        return [text for _, text in sorted(self.texts.items())]


async def ask(session: aiohttp.ClientSession, path: str, body: Json, answer: Answer) -> None:
    """POST `body` and fill `answer`, until it is complete.

    Raises:
        Refused: an HTTP error, an error in the stream, or a stream that ends early.
        aiohttp.ClientError, TimeoutError: the connection failed.
    """
    async with session.post(path, json=body) as response:
        answer.status = response.status
        if response.status != 200:
            raise Refused(f"http {response.status}", _error_message(await response.text()))
        if body.get("stream"):
            async for data in _events(response.content):
                if data != b"[DONE]":  # not every server sends it; finish_reason says more
                    _take(answer, data)
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
    except (ValueError, AttributeError, TypeError) as error:
        raise Refused("not an answer", data[:200].decode(errors="replace")) from error


def _error_message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return text[:200]

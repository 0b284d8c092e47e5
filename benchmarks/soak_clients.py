"""The clients of a soak: they compare what they get with the reference, leave at random moments,
and send nonsense.

A request ends in one of four ways: a right answer, a refusal that was right, a client that left, or
a failure, which is counted by kind and kept with its first example.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from soak_requests import BAD, converse

from radixserve.loadtest.client import Answer, Refused, ask, send_garbage
from radixserve.loadtest.record import digest_of
from radixserve.loadtest.replay import request_of
from radixserve.loadtest.session import Json, Session, Turn

# an answer that takes longer is lost; a death costs 5 s, many times that on a busy machine
ANSWER_SECONDS = 300.0
LEAVE_SHARE = 0.2  # of the requests are sent by a client that leaves,
LEAVE_SECONDS = 3.0  # within
BAD_SHARE = 0.08  # of the requests
WRONG, KILLED_TWICE = "wrong answer", "ended because the engine died twice"
CALL = "call of the operator"
_EXAMPLE_CHARS = 1500


@dataclass(slots=True)
class Full(Answer):
    """All of an answer but its cuts into pieces and where its prompt was found."""

    logprobs: dict[int, list[Any]] = field(default_factory=dict)  # by choice, one entry per token
    reasons: dict[int, str] = field(default_factory=dict)

    def take(self, message: Json) -> None:
        """See `Answer.take`."""
        Answer.take(self, message)
        for choice in message.get("choices", ()):
            self.logprobs.setdefault(choice["index"], []).extend(_logprobs(choice.get("logprobs")))
            if reason := choice.get("finish_reason"):
                self.reasons[choice["index"]] = reason

    @property
    def digest(self) -> str:
        """Equal for equal answers: texts, finish reasons, logprobs and usage."""
        usage = [
            self.usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        ]
        rest = [usage, sorted(self.reasons.items()), sorted(self.logprobs.items())]
        return digest_of([*self.ordered_texts(), json.dumps(rest, sort_keys=True)])

    def begins(self, whole: Full) -> bool:
        """`whole` may be what this was going to be."""
        return all(
            whole.texts.get(index, "").startswith(text) for index, text in self.texts.items()
        )


def _logprobs(given: Json | None) -> list[Any]:
    if not given:
        return []
    if "content" in given:
        return list(given["content"])
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return [list(each) for each in zip(*(given[name] for name in names), strict=True)]


@dataclass(slots=True)
class Tally:
    """How requests ended."""

    sent: int = 0
    right: int = 0
    refused: int = 0  # rightly
    left: int = 0
    calls: Counter[str] = field(
        default_factory=Counter
    )  # of the operator, by kind, refused ones excepted
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # the first of each kind

    def fail(self, kind: str, example: str) -> None:
        """Count a failure."""
        self.failures[kind] += 1
        self.examples.setdefault(kind, f"[{time.strftime('%H:%M:%S')}] {example[:_EXAMPLE_CHARS]}")

    @property
    def lost(self) -> int:
        """Requests without the answer that they should have had, wrong answers and the blame of
        deaths excepted.
        """
        others = (WRONG, KILLED_TWICE, CALL)
        return self.failures.total() - sum(self.failures[kind] for kind in others)


def key_of(path: str, body: Json) -> str:
    """The same for the same request."""
    return json.dumps([path, body], sort_keys=True)


@dataclass(frozen=True, slots=True)
class Expected:
    """A pool of conversations, and the right answer to each request of it by `key_of`."""

    pool: list[Session]
    answers: Mapping[str, Full]


async def references(
    http: aiohttp.ClientSession, pool: list[Session], model: str, on_ended: Callable[[], None]
) -> Expected:
    """Every conversation once, one request at a time. Raises what `ask` raises."""
    found: dict[str, Full] = {}

    async def send(name: str, path: str, body: Json) -> Full:
        answer = Full()
        async with asyncio.timeout(ANSWER_SECONDS):
            await ask(http, path, body, answer)
        found[key_of(path, body)] = answer
        return answer

    for session in pool:
        await converse(session, model, send)
        on_ended()
    return Expected(pool, found)


class Client:
    """A client that draws from a pool; several may count in one tally."""

    def __init__(
        self, http: aiohttp.ClientSession, expected: Expected, model: str, tally: Tally
    ) -> None:
        self.tally = tally
        self._http, self._expected, self._model = http, expected, model

    async def run(self, rng: random.Random, goes_on: Callable[[], bool]) -> None:
        """Request after request, while `goes_on` holds and until the last one has ended."""
        while goes_on():
            if rng.random() < BAD_SHARE:
                await self._bad(rng)
            else:
                await self._talk(rng, goes_on)

    async def _talk(self, rng: random.Random, goes_on: Callable[[], bool]) -> None:
        async def send(name: str, path: str, body: Json) -> Full | None:
            leaves = rng.uniform(0, LEAVE_SECONDS) if rng.random() < LEAVE_SHARE else None
            answer = await self._one(name, path, body, leaves)
            return answer if goes_on() else None

        await converse(rng.choice(self._expected.pool), self._model, send)

    async def _one(self, name: str, path: str, body: Json, leaves: float | None) -> Full | None:
        """The answer if it came and was right."""
        answer, expected = Full(), self._expected.answers[key_of(path, body)]
        if not await self._ended(name, leaves, ask(self._http, path, body, answer)):
            if not answer.begins(expected):
                self.tally.fail(WRONG, f"{name}, beginning: {_both(expected, answer)}")
            return None
        if answer.digest != expected.digest:
            self.tally.fail(WRONG, f"{name}: {_both(expected, answer)}")
            return None
        self.tally.right += 1
        return answer

    async def _bad(self, rng: random.Random) -> None:
        """Something that must be refused, or bytes that are no request."""
        turn = rng.choice((*BAD, None))
        request = self._nonsense(turn) if turn else send_garbage(self._http, rng, Answer())
        if await self._ended("a bad request", None, request):
            self.tally.refused += 1

    async def _nonsense(self, turn: Turn) -> None:
        path, body = request_of(turn, [{"role": "user", "content": str(turn.text)}], self._model)
        async with self._http.post(path, json=body) as response:
            text = await response.text()
        if response.status != turn.expect:
            raise Refused(
                f"http {response.status} instead of {turn.expect}", f"{turn.kind}: {text}"
            )

    async def _ended(self, name: str, leaves: float | None, request: Awaitable[None]) -> bool:
        """Whether it ended well; who left, and failures, are counted here."""
        self.tally.sent += 1
        try:
            async with asyncio.timeout(ANSWER_SECONDS if leaves is None else leaves) as limit:
                await request
            return True
        except Refused as refusal:
            kind = KILLED_TWICE if "died or hung twice" in str(refusal) else refusal.kind
            self.tally.fail(kind, f"{name}: {refusal}")
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            if limit.expired() and leaves is not None:
                self.tally.left += 1
            else:
                kind = (
                    f"no answer within {ANSWER_SECONDS:.0f} s"
                    if limit.expired()
                    else type(error).__name__
                )
                self.tally.fail(kind, f"{name}: {error!r}")
        return False


def _both(expected: Full, answer: Full) -> str:
    shown = [(each.usage, each.reasons, each.texts, each.logprobs) for each in (expected, answer)]
    return f"expected {shown[0]}, got {shown[1]}"

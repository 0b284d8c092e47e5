"""What a soak asks: a finite pool of conversations, determined by a seed, and requests that must be
refused.

Conversations share openings group by group and part from them at different points, so that the
prefix tree branches inside its nodes. Short on purpose: prompts of 40 to 260 tokens, answers of at
most 48.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from radixserve.loadtest.prose import prose
from radixserve.loadtest.replay import request_of
from radixserve.loadtest.session import Endpoint, Json, Session, Turn

GROUPS = 4
GROUP_WORDS = 150  # of the text that a group shares; each conversation takes a beginning of it
LEAST_WORDS = 25
MAX_TOKENS = (
    6,
    12,
    20,
    48,
    48,
)  # the longest is more than a lease grows by at a time, so that it may be preempted
DRAWS: tuple[Json, ...] = (
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 0},
    {"temperature": 1.1, "top_k": 30},
    {"temperature": 0.7, "min_p": 0.05, "repetition_penalty": 1.2, "presence_penalty": 0.5},
)
EXTRAS: Mapping[Endpoint, tuple[Json, ...]] = {
    "chat": ({}, {"logprobs": True, "top_logprobs": 2}, {}, {"n": 2}, {"stop": [".", "\n"]}),
    "completions": (
        {},
        {"logprobs": 3},
        {"logprobs": 1, "echo": True},
        {"n": 2, "logprobs": 0},
        {"stop": ["."]},
    ),
}
BAD = (
    Turn("bad temperature", "chat", "Hello", {"temperature": -1}, False, 400),
    Turn("bad max_tokens", "completions", "Hello", {"max_tokens": -1}, True, 400),
    Turn("logprobs of nothing", "chat", "Hello", {"top_logprobs": 2}, True, 400),
    Turn("unknown field", "completions", "Hello", {"max_token": 4}, False, 400),
    Turn("larger than the budget", "completions", "Hello " * 1000, {}, False, 400),
    Turn("unknown model", "chat", "Hello", {"model": "no-such-model"}, False, 404),
)


class HasTexts(Protocol):
    """An answer, as far as a conversation needs it."""

    def ordered_texts(self) -> list[str]: ...


def conversations(count: int, seed: int) -> list[Session]:
    """`count` conversations: chats of one to three turns and single completions, in turns."""
    return [_conversation(number, seed) for number in range(count)]


def _conversation(number: int, seed: int) -> Session:
    rng = random.Random(f"{seed}/{number}")
    group = number // 2 % GROUPS
    beginning = " ".join(
        prose(GROUP_WORDS, seed, "group", group).split()[: rng.randint(LEAST_WORDS, GROUP_WORDS)]
    )
    name = f"conversation {number}"
    if number % 2:
        text = f"{beginning} {prose(rng.randint(4, 16), seed, number)}"
        return Session(name, (), (Turn(name, "completions", text, *_asked("completions", rng)),))
    turns = tuple(
        Turn(
            f"{name}, turn {turn + 1}",
            "chat",
            prose(rng.randint(5, 20), seed, number, turn),
            *_asked("chat", rng),
        )
        for turn in range(rng.choice((1, 2, 3)))
    )
    return Session(name, ({"role": "system", "content": beginning},), turns)


def _asked(endpoint: Endpoint, rng: random.Random) -> tuple[Json, bool]:
    """A body without its text, and whether it is streamed."""
    body = rng.choice(DRAWS) | rng.choice(EXTRAS[endpoint])
    return body | {
        "max_tokens": rng.choice(MAX_TOKENS),
        "seed": rng.randrange(2**31),
    }, rng.random() < 0.7


async def converse(
    session: Session, model: str, send: Callable[[str, str, Json], Awaitable[HasTexts | None]]
) -> None:
    """Send the turns one after the other, each answer fed back; ends early where `send` gives None.

    `send` takes the turn's name, path and body.
    """
    messages = list(session.opening)
    for turn in session.turns:
        messages = [*messages, {"role": "user", "content": str(turn.text)}]
        answer = await send(turn.kind, *request_of(turn, messages, model))
        if answer is None:
            return
        messages = [*messages, {"role": "assistant", "content": answer.ordered_texts()[0]}]

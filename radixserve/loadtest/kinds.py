"""Builds sessions from the tables `[chat]`, `[[parts]]` and `[mixed]` of a workload. Pure and
seeded.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass

from radixserve.loadtest.prose import prose
from radixserve.loadtest.session import Endpoint, Json, Message, Session, Turn, WorkloadError
from radixserve.loadtest.table import Length, Table


@dataclass(frozen=True, slots=True)
class _Chat:
    """Groups share an opening; each user of a group holds a session of its own."""

    key: tuple[object, ...]  # determines all of its texts
    system_words: Length  # none: no system prompt
    shots: int  # worked examples, as messages of user and assistant
    shot_words: Length  # of each message of an example
    user_words: Length
    body: Json

    def text(self, length: Length, *key: object) -> str:
        """The text that belongs to `key`."""
        return prose(length.draw(*self.key, *key), *self.key, *key)

    def opening(self, group: int) -> tuple[Message, ...]:
        """The messages that the sessions of a group share."""
        messages = []
        if self.system_words.high:
            messages.append(
                {"role": "system", "content": self.text(self.system_words, "system", group)}
            )
        for shot in range(self.shots):
            for role in ("user", "assistant"):
                messages.append(
                    {"role": role, "content": self.text(self.shot_words, role, group, "shot", shot)}
                )
        return tuple(messages)

    def turn(self, group: int, user: int, number: int, kind: str) -> Turn:
        """The `number`-th turn of a user."""
        return Turn(
            kind, "chat", self.text(self.user_words, "user", group, user, number), self.body
        )


def chat(table: Table, seed: int, part: str = "") -> list[Session]:
    """Sessions of every user of every group, the groups taking turns. `part` names them, if there
    are other parts.
    """
    groups, users, turns = (table.count(key, 1) for key in ("groups", "users", "turns"))
    start, every = table.number("start_seconds", 0.0), table.number("every_seconds", 0.0)
    timed = bool(start or every)
    made = _Chat(
        (seed, part) if part else (seed,),
        table.length("system_words", 0),
        table.count("shots", 0, least=0),
        table.length("shot_words", 20),
        table.length("user_words"),
        table.take("body", dict),
    )
    table.end()
    openings = [made.opening(group) for group in range(groups)]
    sessions = []
    for number, (user, group) in enumerate(
        (user, group) for user in range(users) for group in range(groups)
    ):
        sent = tuple(made.turn(group, user, n, part or f"turn {n + 1}") for n in range(turns))
        name = f"{part} group {group} user {user}".strip()
        sessions.append(
            Session(name, openings[group], sent, start + number * every if timed else None)
        )
    return sessions


def parts(tables: list[Table], seed: int) -> list[Session]:
    """Several chats at the same time, each with its own start times; `tenant` becomes the body's
    `user`.
    """
    return [session for table in tables for session in _part(table, seed)]


def _part(table: Table, seed: int) -> Iterator[Session]:
    name, tenant = table.take("name", str), table.take("tenant", str, "")
    for session in chat(table, seed, name):
        turns = session.turns
        if tenant:
            turns = tuple(
                dataclasses.replace(turn, body=turn.body | {"user": tenant}) for turn in turns
            )
        yield dataclasses.replace(session, turns=turns, at=session.at or 0.0)


def mixed(table: Table, seed: int) -> list[Session]:
    """Single requests of many kinds, good and bad, over a few shared openings."""
    requests, prefixes = table.count("requests"), table.count("prefixes")
    prefix_words, words = table.count("prefix_words"), table.count("words")
    kinds = table.tables("kinds")
    table.end()
    weights = [kind.count("weight") for kind in kinds]
    made = [_kind(kind) for kind in kinds]
    openings = [prose(prefix_words, seed, "prefix", number) for number in range(prefixes)]
    rng = random.Random(seed)
    sessions = []
    for number, (kind, endpoint, body, stream, expect) in enumerate(
        rng.choices(made, weights, k=requests)
    ):
        text = f"{rng.choice(openings)} {prose(words, seed, 'text', number)}"
        turn = Turn(kind, endpoint, text, body, stream, expect)
        sessions.append(Session(f"request {number}", (), (turn,)))
    return sessions


def _kind(table: Table) -> tuple[str, Endpoint, Json, bool, int]:
    name, endpoint = table.take("name", str), table.take("endpoint", str)
    if endpoint not in ("chat", "completions"):
        raise WorkloadError(
            f"{table.where}: endpoint must be chat or completions, not {endpoint!r}"
        )
    made = (
        name,
        endpoint,
        table.take("body", dict),
        table.take("stream", bool, False),
        table.take("expect", int, 200),
    )
    table.end()
    return made  # type: ignore[return-value]  # mypy does not narrow a str to a Literal

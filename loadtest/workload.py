"""Workloads: TOML files turned into conversations. Knows no HTTP and no clock.

A conversation is sent by one client, one turn after the other; conversations run side by side.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from loadtest.prose import prose

Endpoint = Literal["chat", "completions"]
Json = dict[str, Any]
T = TypeVar("T")

FOLDER = Path(__file__).parent / "workloads"


class WorkloadError(Exception):
    """A workload cannot be read; the message names the file and the field."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request: what is added to the conversation, and the rest of the body."""

    kind: str
    endpoint: Endpoint
    text: str
    body: Json
    stream: bool = True
    expect: int = 200  # the HTTP status that is right for it


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that follow each other; in chat each one sends the answers before it back."""

    name: str
    system: str | None
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    seed: int
    clients: int  # conversations at a time
    conversations: list[Conversation] = field(repr=False)

    @property
    def num_requests(self) -> int:
        return sum(len(conversation.turns) for conversation in self.conversations)


def load_workload(name_or_path: str) -> Workload:
    """Read a workload by its path, or by its name in loadtest/workloads.

    Raises:
        WorkloadError: no such file, not TOML, or a field that is missing, unknown or of the wrong kind.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = FOLDER / f"{name_or_path}.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(each.stem for each in FOLDER.glob("*.toml")))
        raise WorkloadError(f"cannot read {path}: {error.strerror}; there are: {known}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path} is not TOML: {error}") from error
    return _workload(_Table(table, str(path)))


def _workload(table: _Table) -> Workload:
    seed, load = table.take("seed", int), table.table("load")
    builders: dict[str, Callable[[_Table, int], list[Conversation]]] = {
        "shared_system": _shared_system,
        "mixed": _mixed,
    }
    kinds = [kind for kind in builders if kind in table.values]
    if len(kinds) != 1:
        raise WorkloadError(f"{table.where}: exactly one of the tables {', '.join(builders)} is needed")
    conversations = builders[kinds[0]](table.table(kinds[0]), seed)
    workload = Workload(table.take("name", str), seed, load.positive("clients"), conversations)
    load.end()
    table.end()
    return workload


def _shared_system(table: _Table, seed: int) -> list[Conversation]:
    groups, users, turns = (table.positive(key) for key in ("groups", "users", "turns"))
    system_words, user_words = table.positive("system_words"), table.positive("user_words")
    body = table.take("body", dict)
    table.end()
    systems = [prose(system_words, seed, "system", group) for group in range(groups)]

    def turn(group: int, user: int, number: int) -> Turn:
        return Turn(f"turn {number + 1}", "chat", prose(user_words, seed, "user", group, user, number), body)

    return [
        Conversation(f"group {group} user {user}", systems[group], tuple(turn(group, user, n) for n in range(turns)))
        for user in range(users)
        for group in range(groups)
    ]


def _mixed(table: _Table, seed: int) -> list[Conversation]:
    requests, prefixes = table.positive("requests"), table.positive("prefixes")
    prefix_words, words = table.positive("prefix_words"), table.positive("words")
    kinds = [_Table(each, f"{table.where} kinds[{i}]") for i, each in enumerate(table.take("kinds", list))]
    table.end()
    weights = [kind.positive("weight") for kind in kinds]
    made = [_kind(kind) for kind in kinds]
    openings = [prose(prefix_words, seed, "prefix", number) for number in range(prefixes)]
    rng = random.Random(seed)
    conversations = []
    for number, (kind, endpoint, body, stream, expect) in enumerate(rng.choices(made, weights, k=requests)):
        text = f"{rng.choice(openings)} {prose(words, seed, 'text', number)}"
        turn = Turn(kind, endpoint, text, body, stream, expect)
        conversations.append(Conversation(f"request {number}", None, (turn,)))
    return conversations


def _kind(table: _Table) -> tuple[str, Endpoint, Json, bool, int]:
    name, endpoint = table.take("name", str), table.take("endpoint", str)
    if endpoint not in ("chat", "completions"):
        raise WorkloadError(f"{table.where}: endpoint must be chat or completions, not {endpoint!r}")
    made = (name, endpoint, table.take("body", dict), table.take("stream", bool, False), table.take("expect", int, 200))
    table.end()
    return made  # type: ignore[return-value]  # mypy does not narrow a str to a Literal


class _Table:
    """A TOML table whose fields are taken one by one, so that wrong, missing and unknown ones can be named."""

    def __init__(self, values: Json, where: str) -> None:
        self.values = dict(values)
        self.where = where

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        value = self.values.pop(key, default)
        if type(value) is not kind:
            problem = "is missing" if value is None else f"must be of type {kind.__name__}, not {value!r}"
            raise WorkloadError(f"{self.where}: {key} {problem}")
        return value

    def positive(self, key: str) -> int:
        value = self.take(key, int)
        if value < 1:
            raise WorkloadError(f"{self.where}: {key} must be at least 1, not {value}")
        return value

    def table(self, key: str) -> _Table:
        return _Table(self.take(key, dict), f"{self.where} [{key}]")

    def end(self) -> None:
        if self.values:
            raise WorkloadError(f"{self.where}: unknown field {next(iter(self.values))}")

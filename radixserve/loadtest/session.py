"""The requests as plain values. A session is the sequence of requests of one client; a turn is one
request.

Knows no HTTP, no clock and no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Endpoint = Literal["chat", "completions"]
Json = dict[str, Any]
Message = dict[str, str]


class WorkloadError(Exception):
    """A workload or a trace cannot be used; the message names the file and the field or
    the line.
    """


@dataclass(frozen=True, slots=True)
class Turn:
    """One request: the text that is added to the session, and the rest of the body."""

    kind: str  # the name under which it is counted
    endpoint: Endpoint
    text: str | list[int]  # token ids: completions only
    body: Json
    stream: bool = True
    expect: int = 200  # the expected HTTP status


@dataclass(frozen=True, slots=True)
class Session:
    """Turns that follow each other; in chat each one also sends the messages and answers before
    it.
    """

    name: str
    opening: tuple[Message, ...]  # messages before the first turn: a system prompt, worked examples
    turns: tuple[Turn, ...]
    at: float | None = None  # seconds from the start of the run; None: when a client is free

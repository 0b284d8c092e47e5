"""The typed parts of an answer, in the order in which they are written.

Adjacent parts of one kind belong together: the text of an answer is the concatenation of its `Text`
parts, and the arguments of a call that of its `CallArguments`. Knows no markup and no dialect.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The model begins to call a tool."""

    index: int  # of the call within the answer, from 0
    id: str
    name: str  # always the name of a tool that the request offers


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the JSON text of a call's arguments.

    Together the pieces of a complete call are one JSON object. Those of a call that was cut, or
    whose markup broke, are what the model wrote of it.
    """

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The call is over. A call that the end of the text cuts has no such part."""

    index: int


Part = Text | Reasoning | CallBegun | CallArguments | CallEnded

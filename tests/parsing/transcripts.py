"""What models write, cut into pieces, and the parts that must come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from radixserve.parsing.formats import FORMATS, parser
from radixserve.parsing.parser import Parser
from radixserve.parsing.parts import (
    CallArguments,
    CallBegun,
    CallEnded,
    Part,
    Reasoning,
    Text,
)
from radixserve.parsing.reasoning import REASONING_FORMATS
from radixserve.parsing.tool import Tool

TOOLS = (
    Tool(
        "get_weather",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "metric": {"type": "boolean"},
                "where": {"type": "object"},
                "hours": {"type": "array", "items": {"type": "number"}},
            },
        },
    ),
    Tool("now"),
)


@dataclass(frozen=True)
class Setup:
    """A parser's settings."""

    tool_format: str | None = None
    reasoning: str | None = None
    inside: bool = False
    tools: Sequence[Tool] = TOOLS

    @property
    def name(self) -> str:
        return f"{self.tool_format}, {self.reasoning}{' begun' if self.inside else ''}"

    def parser(self) -> Parser:
        return parser(
            FORMATS[self.tool_format] if self.tool_format else None,
            self.tools,
            reasoning=REASONING_FORMATS[self.reasoning] if self.reasoning else None,
            starts_in_reasoning=self.inside,
        )


def call(index: int, name: str, arguments: str, *, ended: bool = True) -> list[Part]:
    """The parts of a call, with an empty id."""
    fragments: list[Part] = [CallArguments(index, arguments)] if arguments else []
    return [CallBegun(index, "", name), *fragments, *([CallEnded(index)] if ended else [])]


def parts_of(setup: Setup, pieces: Sequence[str]) -> list[Part]:
    """Everything that the parser makes of these pieces."""
    each = setup.parser()
    return [part for piece in pieces for part in each.push(piece)] + each.finish()


def parsed(setup: Setup, pieces: Sequence[str]) -> list[Part]:
    """The same with neighbours joined and ids left out."""
    return joined(parts_of(setup, pieces))


def joined(parts: Sequence[Part]) -> list[Part]:
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        match part, last:
            case CallBegun(index, _, name), _:
                found.append(CallBegun(index, "", name))
            case (Text(text), Text(before)):
                found[-1] = Text(before + text)
            case (Reasoning(text), Reasoning(before)):
                found[-1] = Reasoning(before + text)
            case (CallArguments(index, text), CallArguments(same, before)) if index == same:
                found[-1] = CallArguments(index, before + text)
            case _:
                found.append(part)
    return found


def cut(text: str, places: Sequence[int]) -> list[str]:
    """The pieces of a text that is cut at these places."""
    ends = sorted({0, len(text), *(min(place, len(text)) for place in places)})
    return [text[start:end] for start, end in pairwise(ends)]

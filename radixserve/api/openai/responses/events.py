"""The events of a streamed response: their fields, and their numbers.

Each event carries its name as `type`, too, and the next `sequence_number`. Owns the field names.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from radixserve.api import sse
from radixserve.api.openai.answers import ChatTokenLogprob
from radixserve.api.openai.responses.answers import (
    OutputItem,
    OutputText,
    ReasoningText,
    Response,
    SummaryText,
)


class Event(msgspec.Struct, kw_only=True):
    """What all events have."""

    type: str
    sequence_number: int = 0


class ResponseEvent(Event):
    """The whole response enters a state."""

    response: Response


class ItemEvent(Event):
    """An item begins or is complete."""

    output_index: int
    item: OutputItem


class PartEvent(Event):
    """A part of an item's content begins or is complete."""

    item_id: str
    output_index: int
    part: OutputText | ReasoningText
    content_index: int = 0


class ContentDelta(Event):
    """A piece of a text."""

    item_id: str
    output_index: int
    delta: str = ""
    content_index: int = 0
    logprobs: list[ChatTokenLogprob] | UnsetType = UNSET


class ContentDone(Event):
    """A text is complete."""

    item_id: str
    output_index: int
    text: str
    content_index: int = 0
    logprobs: list[ChatTokenLogprob] | UnsetType = UNSET


class SummaryPartEvent(Event):
    """A part of a summary begins or is complete."""

    item_id: str
    output_index: int
    part: SummaryText
    summary_index: int = 0


class SummaryDelta(Event):
    """A piece of a summary."""

    item_id: str
    output_index: int
    delta: str = ""
    summary_index: int = 0


class SummaryDone(Event):
    """The text of a summary is complete."""

    item_id: str
    output_index: int
    text: str
    summary_index: int = 0


class CallDelta(Event):
    """A piece of a call's arguments, or of a custom tool's input."""

    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(Event):
    """The arguments of a call are complete."""

    item_id: str
    output_index: int
    name: str
    arguments: str


class InputDone(Event):
    """The input of a custom tool is complete."""

    item_id: str
    output_index: int
    input: str


class EventWriter:
    """Numbers and encodes the events of one stream."""

    def __init__(self) -> None:
        self._next = 0

    def write(self, event: Event) -> bytes:
        """The bytes of `event`, which gets the next number."""
        event.sequence_number = self._next
        self._next += 1
        return sse.event(event, event.type)

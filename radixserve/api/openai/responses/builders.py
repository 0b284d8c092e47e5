"""One class for each kind of output item: it builds the item piece by piece, together with the
events that tell of it. Knows no other item of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from radixserve.api.openai.answers import ChatTokenLogprob
from radixserve.api.openai.responses.answers import (
    OutputCustomCall,
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    SummaryText,
)
from radixserve.api.openai.responses.events import (
    ArgumentsDone,
    CallDelta,
    ContentDelta,
    ContentDone,
    Event,
    EventWriter,
    InputDone,
    ItemEvent,
    PartEvent,
    SummaryDelta,
    SummaryDone,
    SummaryPartEvent,
)
from radixserve.api.openai.responses.opaque import sealed
from radixserve.api.openai.responses.tools import custom_input
from radixserve.parsing.parts import CallBegun

IN_PROGRESS = "in_progress"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item stands in its answer, and where its events go."""

    writer: EventWriter
    index: int
    item_id: str

    def item(self, name: str, item: OutputItem) -> bytes:
        """The event `name` ("added" or "done") of the item."""
        return self.writer.write(ItemEvent(self.index, item, type=f"response.output_item.{name}"))

    def part(self, name: str, part: OutputText | ReasoningText) -> bytes:
        """The event `name` ("added" or "done") of the item's only part."""
        kind = f"response.content_part.{name}"
        return self.writer.write(PartEvent(self.item_id, self.index, part, type=kind))


class Builder(Protocol):
    """Builds one item. Its methods return the events that they cause."""

    @property
    def item(self) -> OutputItem:
        """The item so far; complete after `end`."""

    def begin(self) -> bytes:
        """Announce the item."""

    def add(self, text: str) -> bytes:
        """Append to the item's text or arguments."""

    def end(self, status: str) -> bytes:
        """Complete the item."""


class MessageBuilder:
    """A message with one part, a text."""

    def __init__(self, place: Place) -> None:
        self.item = OutputMessage(place.item_id, IN_PROGRESS, [])
        self._place = place
        self._pieces: list[str] = []
        self._part = OutputText("", [])
        kind = "response.output_text.delta"
        self._delta = ContentDelta(place.item_id, place.index, logprobs=[], type=kind)

    def begin(self) -> bytes:
        """See `Builder`."""
        added = self._place.item("added", self.item) + self._place.part("added", self._part)
        self.item.content.append(self._part)
        return added

    def add(self, text: str, logprobs: list[ChatTokenLogprob] | None = None) -> bytes:
        """See `Builder`; `logprobs` belong to the tokens of `text`."""
        self._pieces.append(text)
        self._delta.delta, self._delta.logprobs = text, logprobs or []
        if logprobs:
            self._part.logprobs += logprobs
        return self._place.writer.write(self._delta)

    def end(self, status: str) -> bytes:
        """See `Builder`."""
        place, part = self._place, self._part
        part.text = "".join(self._pieces)
        done = ContentDone(
            place.item_id,
            place.index,
            part.text,
            logprobs=part.logprobs,
            type="response.output_text.done",
        )
        self.item.status = status
        return place.writer.write(done) + place.part("done", part) + place.item("done", self.item)

    def add_logprobs(self, logprobs: list[ChatTokenLogprob]) -> None:
        """Append those of tokens without a text, such as a stop token."""
        self._part.logprobs += logprobs


class ReasoningBuilder:
    """Reasoning with one part, a text. `seals`: it is also given in the form that clients send
    back unread.
    """

    def __init__(self, place: Place, *, seals: bool) -> None:
        self.item = OutputReasoning(place.item_id, IN_PROGRESS, [], [])
        self._place, self._seals = place, seals
        self._pieces: list[str] = []
        self._part = ReasoningText("")
        kind = "response.reasoning_text.delta"
        self._delta = ContentDelta(place.item_id, place.index, type=kind)

    def begin(self) -> bytes:
        """See `Builder`."""
        added = self._place.item("added", self.item) + self._place.part("added", self._part)
        self.item.content.append(self._part)
        return added

    def add(self, text: str) -> bytes:
        """See `Builder`."""
        self._pieces.append(text)
        self._delta.delta = text
        return self._place.writer.write(self._delta)

    def end(self, status: str) -> bytes:
        """See `Builder`."""
        place, part = self._place, self._part
        part.text = "".join(self._pieces)
        kind = "response.reasoning_text.done"
        done = ContentDone(place.item_id, place.index, part.text, type=kind)
        _complete(self.item, status, part.text if self._seals else None)
        return place.writer.write(done) + place.part("done", part) + place.item("done", self.item)


class SummaryBuilder:
    """Reasoning that is given as its own summary, for clients that show summaries only."""

    def __init__(self, place: Place, *, seals: bool) -> None:
        self.item = OutputReasoning(place.item_id, IN_PROGRESS, [], [])
        self._place, self._seals = place, seals
        self._pieces: list[str] = []
        self._part = SummaryText("")
        kind = "response.reasoning_summary_text.delta"
        self._delta = SummaryDelta(place.item_id, place.index, type=kind)

    def begin(self) -> bytes:
        """See `Builder`."""
        added = self._place.item("added", self.item) + self._told("added")
        self.item.summary.append(self._part)
        return added

    def add(self, text: str) -> bytes:
        """See `Builder`."""
        self._pieces.append(text)
        self._delta.delta = text
        return self._place.writer.write(self._delta)

    def end(self, status: str) -> bytes:
        """See `Builder`."""
        place, part = self._place, self._part
        part.text = "".join(self._pieces)
        kind = "response.reasoning_summary_text.done"
        done = place.writer.write(SummaryDone(place.item_id, place.index, part.text, type=kind))
        _complete(self.item, status, part.text if self._seals else None)
        return done + self._told("done") + place.item("done", self.item)

    def _told(self, name: str) -> bytes:
        place, kind = self._place, f"response.reasoning_summary_part.{name}"
        event = SummaryPartEvent(place.item_id, place.index, self._part, type=kind)
        return place.writer.write(event)


def _complete(item: OutputReasoning, status: str, sealing: str | None) -> None:
    """Set the status, and the form to be sent back of the text `sealing`."""
    item.status = status
    if sealing is not None:
        item.encrypted_content = sealed(sealing)


class FunctionCallBuilder:
    """A call of a function."""

    def __init__(self, place: Place, call: CallBegun) -> None:
        self.item = OutputFunctionCall(place.item_id, IN_PROGRESS, call.id, call.name)
        self._place = place
        self._pieces: list[str] = []

    def begin(self) -> bytes:
        """See `Builder`."""
        return self._place.item("added", self.item)

    def add(self, text: str) -> bytes:
        """See `Builder`."""
        self._pieces.append(text)
        kind = "response.function_call_arguments.delta"
        return self._told(CallDelta(*self._here, text, type=kind))

    def end(self, status: str) -> bytes:
        """See `Builder`."""
        item = self.item
        item.status, item.arguments = status, "".join(self._pieces)
        kind = "response.function_call_arguments.done"
        done = self._told(ArgumentsDone(*self._here, item.name, item.arguments, type=kind))
        return done + self._place.item("done", item)

    @property
    def _here(self) -> tuple[str, int]:
        return self._place.item_id, self._place.index

    def _told(self, event: Event) -> bytes:
        return self._place.writer.write(event)


class CustomCallBuilder:
    """A call of a custom tool. Its input is a text within the arguments that the model writes, so
    it is told in one piece, at the end.
    """

    def __init__(self, place: Place, call: CallBegun) -> None:
        self.item = OutputCustomCall(place.item_id, IN_PROGRESS, call.id, call.name)
        self._place = place
        self._pieces: list[str] = []

    def begin(self) -> bytes:
        """See `Builder`."""
        return self._place.item("added", self.item)

    def add(self, text: str) -> bytes:
        """See `Builder`."""
        self._pieces.append(text)
        return b""

    def end(self, status: str) -> bytes:
        """See `Builder`."""
        place, item = self._place, self.item
        item.status, item.input = status, custom_input("".join(self._pieces))
        name, here = "response.custom_tool_call_input", (place.item_id, place.index)
        delta = place.writer.write(CallDelta(*here, item.input, type=f"{name}.delta"))
        done = place.writer.write(InputDone(*here, item.input, type=f"{name}.done"))
        return delta + done + place.item("done", item)

"""Collects the output items of one answer from its parts, and the events that tell of them.

A whole answer takes the same way as a streamed one, so both have the same items. Knows no HTTP and
no engine.
"""

from __future__ import annotations

from radixserve.api.openai.answers import ChatTokenLogprob
from radixserve.api.openai.responses.answers import OutputItem
from radixserve.api.openai.responses.builders import (
    Builder,
    CustomCallBuilder,
    FunctionCallBuilder,
    MessageBuilder,
    Place,
    ReasoningBuilder,
    SummaryBuilder,
)
from radixserve.api.openai.responses.events import EventWriter
from radixserve.parsing.parts import CallArguments, CallBegun, CallEnded, Part, Reasoning, Text


class Output:
    """The items of one answer. An item is open until a part of another kind arrives.

    Every method returns the events that it causes.
    """

    def __init__(self, writer: EventWriter, unique: str, custom: frozenset[str]) -> None:
        """`unique` makes the ids of items; `custom` are the names of custom tools."""
        self.seals_reasoning = False  # reasoning is also given in a form that can be sent back
        self.summarises = False  # reasoning is given as a summary
        self._writer, self._unique, self._custom = writer, unique, custom
        self._items: list[OutputItem] = []
        self._open: Builder | None = None
        self._logprobs: list[ChatTokenLogprob] = []  # of tokens whose text has not arrived

    @property
    def items(self) -> list[OutputItem]:
        """The items so far, an open one included."""
        return self._items

    def push(self, parts: list[Part], logprobs: list[ChatTokenLogprob]) -> bytes:
        """Add the parts of a delta. Logprobs go with the next text of the answer."""
        if logprobs:
            self._logprobs += logprobs
        return b"".join([self._push(part) for part in parts])

    def finish(self, *, is_complete: bool) -> bytes:
        """Close the last item. An answer without any item becomes an empty message."""
        events = b"" if self._items else self._begin(MessageBuilder(self._place("msg")))
        if isinstance(self._open, MessageBuilder):
            self._open.add_logprobs(self._taken())
        return events + self._close("completed" if is_complete else "incomplete")

    def _push(self, part: Part) -> bytes:
        if isinstance(part, Text):
            return self._push_text(part.text)
        if isinstance(part, Reasoning):
            if isinstance(self._open, ReasoningBuilder | SummaryBuilder):
                return self._open.add(part.text)
            kind = SummaryBuilder if self.summarises else ReasoningBuilder
            builder = kind(self._place("rs"), seals=self.seals_reasoning)
            return self._begin(builder) + builder.add(part.text)
        return self._push_call(part)

    def _push_text(self, text: str) -> bytes:
        if isinstance(self._open, MessageBuilder):
            return self._open.add(text, self._taken())
        builder = MessageBuilder(self._place("msg"))
        return self._begin(builder) + builder.add(text, self._taken())

    def _push_call(self, part: CallBegun | CallArguments | CallEnded) -> bytes:
        if isinstance(part, CallEnded):
            return self._close("completed")
        if isinstance(part, CallArguments):
            return b"" if self._open is None else self._open.add(part.text)
        if part.name in self._custom:
            return self._begin(CustomCallBuilder(self._place("ctc"), part))
        return self._begin(FunctionCallBuilder(self._place("fc"), part))

    def _place(self, kind: str) -> Place:
        index = len(self._items)
        return Place(self._writer, index, f"{kind}_{self._unique}{index:02}")

    def _begin(self, builder: Builder) -> bytes:
        """Close the open item and announce the next."""
        closing = self._close("completed")
        self._open = builder
        self._items.append(builder.item)
        return closing + builder.begin()

    def _close(self, status: str) -> bytes:
        builder, self._open = self._open, None
        return b"" if builder is None else builder.end(status)

    def _taken(self) -> list[ChatTokenLogprob]:
        """The logprobs that wait for a text."""
        taken, self._logprobs = self._logprobs, []
        return taken

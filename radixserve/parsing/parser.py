"""The interface of all parsers, and the two ways to implement it: text that passes unchanged, and
text that a generator reads.
"""

from __future__ import annotations

from typing import Protocol

from radixserve.parsing.output import Output
from radixserve.parsing.parts import Part, Text
from radixserve.parsing.reader import Reader, Reading


class Parser(Protocol):
    """Turns the text of one answer into parts.

    However the text is cut into pieces, the parts are the same once neighbours are joined. No text
    makes a parser raise. The cost is amortised O(len(text)).
    """

    def push(self, text: str) -> list[Part]:
        """Add text and return the parts that are certain now."""

    def finish(self) -> list[Part]:
        """The text is complete: return the parts that were held back. Called once, at the end."""


class PlainParser:
    """All text is the text of the answer."""

    def push(self, text: str) -> list[Part]:
        return [Text(text)] if text else []

    def finish(self) -> list[Part]:
        return []


class MarkupParser:
    """Runs a generator that reads markup from a `Reader` and writes parts to an `Output`."""

    def __init__(self, reader: Reader, output: Output, reading: Reading[None]) -> None:
        self._reader = reader
        self._output = output
        self._reading = reading
        next(reading, None)  # to its first wish for text

    def push(self, text: str) -> list[Part]:
        self._reader.feed(text)
        next(self._reading, None)
        return self._output.take()

    def finish(self) -> list[Part]:
        self._reader.ended = True
        next(self._reading, None)
        self._output.reasoning.finish()
        self._output.text.finish()
        return self._output.take()

"""Reads a whole answer: reasoning at its beginning, then text and tool calls.

How calls are written is known to the format's `Calls`, how reasoning is set apart to its
`ReasoningFormat`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from radixserve.parsing.output import Output
from radixserve.parsing.reader import Broken, Markers, Reader, Reading
from radixserve.parsing.reasoning import ReasoningFormat


class Calls(Protocol):
    """How a model writes tool calls.

    A reading that finds something else raises `Broken`. What was taken since `Reader.mark` then
    becomes text of the answer, and reading goes on behind it.
    """

    begins: tuple[str, ...]  # markers that begin calls anywhere in the text

    def at_start(self, reader: Reader, output: Output) -> Reading[None]:
        """Read calls that the text begins with and that no marker begins."""

    def read(self, reader: Reader, output: Output) -> Reading[None]:
        """Read calls from a marker on, which has not been taken."""


class NoCalls:
    """The model calls no tools."""

    begins: tuple[str, ...] = ()

    def at_start(self, reader: Reader, output: Output) -> Reading[None]:
        yield from ()

    def read(self, reader: Reader, output: Output) -> Reading[None]:
        """Never called: no marker begins a call."""
        yield from ()


def read_answer(
    reader: Reader,
    output: Output,
    calls: Calls,
    reasoning: ReasoningFormat | None,
    starts_in_reasoning: bool,
) -> Reading[None]:
    """Read an answer to its end.

    `starts_in_reasoning`: the prompt ends with the marker that begins reasoning.
    """
    ignored = () if reasoning is None else reasoning.ignored
    if reasoning is not None:
        yield from _read_reasoning(reader, output, reasoning, starts_in_reasoning)
    yield from _attempt(calls.at_start, reader, output)
    markers = Markers((*calls.begins, *ignored))
    while marker := (yield from reader.until(markers, output.text.write)):
        if marker in ignored:
            reader.take(len(marker))
            output.text.touch()
        else:
            yield from _attempt(calls.read, reader, output)


def _attempt(
    read: Callable[[Reader, Output], Reading[None]], reader: Reader, output: Output
) -> Reading[None]:
    """Try to read calls; what does not make sense as a call becomes text."""
    reader.mark()
    try:
        yield from read(reader, output)
    except Broken:
        output.text.write(reader.unmark())
    reader.unmark()


def _read_reasoning(
    reader: Reader, output: Output, reasoning: ReasoningFormat, inside: bool
) -> Reading[None]:
    """Read the reasoning that the text begins with, if it does."""
    ends = Markers([reasoning.end])
    while True:
        reader.mark()
        yield from reader.space()
        inside |= yield from reader.literal(reasoning.begin)
        before = reader.unmark()
        if not inside:
            output.text.write(before)
            return
        output.reasoning.touch()
        yield from reader.until(ends, output.reasoning.write)
        if (yield from reader.literal(reasoning.end)):
            output.reasoning.touch()
        output.text.touch()
        inside = False

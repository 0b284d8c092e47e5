"""Reads text that arrives in pieces, as if all of it were there.

The markup of an answer is read by generators. Such a generator yields when it needs more text and
is resumed after the next `Reader.feed`, so it can be written as for a whole text, and where the
text was cut makes no difference. What is taken is not looked at again: beside marked text (see
`Reader.mark`) only the unfinished beginning of a marker stays in the buffer. Knows no markup.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""A reader's work: it yields when it needs more text, and returns a T."""

_NO_SPACE = re.compile(r"[^ \t\r\n]")


class Broken(Exception):
    """The text is not the markup that it began as. Raised by readings and caught by the loop that
    reads an answer, never seen by a caller of a parser.
    """


class Markers:
    """Strings to be found in text; none of them is the beginning of another."""

    def __init__(self, markers: Iterable[str]) -> None:
        self._markers = sorted(set(markers))
        assert all(self._markers), "an empty marker is everywhere"
        assert not any(
            one != other and other.startswith(one)
            for one in self._markers
            for other in self._markers
        ), "whether a marker is complete would depend on what follows"
        self._firsts = {marker[0] for marker in self._markers}
        self._longest = max(map(len, self._markers), default=0)
        self._pattern = re.compile("|".join(map(re.escape, self._markers)) or r"(?!)")

    def find(self, text: str, start: int) -> re.Match[str] | None:
        """The first marker in `text` from `start` on."""
        return self._pattern.search(text, start)

    def num_begun(self, text: str, start: int) -> int:
        """Length of the longest suffix of `text[start:]` that is an unfinished marker."""
        low = max(start, len(text) - self._longest + 1)
        if all(text.find(first, low) < 0 for first in self._firsts):
            return 0
        return max(
            (
                len(text) - at
                for at in range(low, len(text))
                for marker in self._markers
                if marker.startswith(text[at:])
            ),
            default=0,
        )


class Reader:
    """The text of one answer, fed piece by piece and taken from the front."""

    def __init__(self) -> None:
        self.ended = False  # no text will follow
        self._text = ""
        self._at = 0  # where the text begins that has not been taken
        self._taken: list[str] | None = None  # since the mark

    def feed(self, text: str) -> None:
        """Add text. O(len(text)) and the few characters that are held."""
        self._text, self._at = self._text[self._at :] + text, 0

    def mark(self) -> None:
        """From here on remember what is taken, so that it can be given back as text."""
        self._taken = []

    def unmark(self) -> str:
        """What was taken since the mark, if there is one; the mark is gone."""
        taken, self._taken = self._taken, None
        return "".join(taken or ())

    def take(self, count: int) -> str:
        """The next `count` characters, or as many as are there."""
        text = self._text[self._at : self._at + count]
        self._at += len(text)
        if self._taken is not None:
            self._taken.append(text)
        return text

    def until(self, markers: Markers, emit: Callable[[str], object]) -> Reading[str]:
        """Take text up to the first marker and hand it to `emit` piece by piece. Returns the
        marker, which is not taken; empty if the text ends without one.
        """
        while True:
            if (match := markers.find(self._text, self._at)) is not None:
                self._emit(match.start() - self._at, emit)
                return match.group()
            num_held = 0 if self.ended else markers.num_begun(self._text, self._at)
            self._emit(len(self._text) - self._at - num_held, emit)
            if self.ended:
                return ""
            yield

    def run(self, stop: re.Pattern[str]) -> Reading[str]:
        """Take everything before the first character that matches `stop`."""
        pieces: list[str] = []
        while True:
            match = stop.search(self._text, self._at)
            end = match.start() if match else len(self._text)
            pieces.append(self.take(end - self._at))
            if match or self.ended:
                return "".join(pieces)
            yield

    def space(self) -> Reading[None]:
        """Take white space."""
        yield from self.run(_NO_SPACE)

    def peek(self) -> Reading[str]:
        """The next character, which is not taken; empty at the end of the text."""
        while self._at == len(self._text):
            if self.ended:
                return ""
            yield
        return self._text[self._at]

    def literal(self, text: str) -> Reading[bool]:
        """Take `text` if it comes next; otherwise take nothing and return False."""
        while True:
            if self._text.startswith(text, self._at):
                self.take(len(text))
                return True
            rest = self._text[self._at : self._at + len(text)]
            if self.ended or not text.startswith(rest):
                return False
            yield

    def expect(self, text: str) -> Reading[None]:
        """Take `text`.

        Raises:
            Broken: something else comes next.
        """
        if not (yield from self.literal(text)):
            raise Broken

    def _emit(self, count: int, emit: Callable[[str], object]) -> None:
        if count:
            emit(self.take(count))

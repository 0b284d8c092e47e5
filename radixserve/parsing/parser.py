"""The interface of a parser."""

from __future__ import annotations

from typing import Protocol

from radixserve.parsing.parts import Part


class Parser(Protocol):
    """Reads the text of one answer, which arrives in pieces."""

    def push(self, text: str) -> list[Part]:
        """The parts that `text` completes or continues."""

    def finish(self) -> list[Part]:
        """The parts of what was held back, at the end of the text."""

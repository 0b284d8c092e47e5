"""Collects the parts of one answer: joins neighbours, numbers the calls, drops white space that
only sets markup apart. Knows no markup.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterable

from radixserve.parsing.parts import (
    CallArguments,
    CallBegun,
    CallEnded,
    Part,
    Reasoning,
    Text,
)
from radixserve.parsing.reader import Broken
from radixserve.parsing.tool import Tool

_SPACE = " \t\r\n"
_ALPHANUMERIC = string.ascii_letters + string.digits


def call_id() -> str:
    """A new id of a call in the form that OpenAI's have: call_ and 24 characters."""
    return f"call_{secrets.token_hex(12)}"


def short_call_id() -> str:
    """A new id of a call as Mistral's templates want it: 9 letters and digits."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


class Output:
    """The parts of one answer that have not been handed out.

    Attributes:
        text: where the text of the answer goes.
        reasoning: where the model's reasoning goes.
        tools: the tools that the model may call, by name.
    """

    def __init__(self, tools: Iterable[Tool], new_id: Callable[[], str] = call_id) -> None:
        self.text = Prose(lambda piece: self._add("text", piece))
        self.reasoning = Prose(lambda piece: self._add("reasoning", piece))
        self.tools = {tool.name: tool for tool in tools}
        self._new_id = new_id
        self._parts: list[Part] = []
        self._kind = ""  # of the pieces that are not yet a part
        self._pieces: list[str] = []
        self._index = -1  # of the newest call
        self._own_ids = {""}  # that cannot be used (again)

    def require(self, name: str) -> Tool:
        """The tool with this name.

        Raises:
            Broken: the request offers no such tool.
        """
        if name not in self.tools:
            raise Broken
        return self.tools[name]

    def begin(self, name: str, own_id: str = "") -> None:
        """A call of this tool begins. `own_id` is the id that the model gave it, which is used if
        it is the only one of that id.
        """
        self._flush()
        self.text.touch()
        self._index += 1
        used = self._new_id() if own_id in self._own_ids else own_id
        self._own_ids.add(own_id)
        self._parts.append(CallBegun(self._index, used, name))

    def arguments(self, piece: str) -> None:
        """The next fragment of the arguments of the call that began last."""
        self._add("arguments", piece)

    def end(self) -> None:
        """The call that began last is over."""
        self._flush()
        self._parts.append(CallEnded(self._index))

    def take(self) -> list[Part]:
        """The parts since the last time."""
        self._flush()
        parts, self._parts = self._parts, []
        return parts

    def _add(self, kind: str, piece: str) -> None:
        if kind != self._kind:
            self._flush()
            self._kind = kind
        self._pieces.append(piece)

    def _flush(self) -> None:
        text = "".join(self._pieces)
        self._pieces.clear()
        if not text:
            return
        if self._kind == "text":
            self._parts.append(Text(text))
        elif self._kind == "reasoning":
            self._parts.append(Reasoning(text))
        else:
            self._parts.append(CallArguments(self._index, text))


class Prose:
    """Text for people, without the white space between it and markup.

    White space is held until it is known what follows; all other text goes on at once.
    """

    def __init__(self, emit: Callable[[str], object]) -> None:
        self._emit = emit
        self._held: list[str] = []
        self._follows_markup = False

    def write(self, piece: str) -> None:
        """Add text."""
        if self._follows_markup:
            piece = piece.lstrip(_SPACE)
        if not piece:
            return
        self._follows_markup = False
        if end := len(piece.rstrip(_SPACE)):
            self._emit("".join((*self._held, piece[:end])))
            self._held = [piece[end:]]
        else:
            self._held.append(piece)

    def touch(self) -> None:
        """Markup stands here."""
        self._held.clear()
        self._follows_markup = True

    def finish(self) -> None:
        """The text ends here."""
        self._emit("".join(self._held))
        self._held.clear()

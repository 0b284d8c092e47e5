"""Where a mark goes into a client's text, so that no control token can be made with that text.

A chat template puts strings together. A control token that contains a part of a client's text
begins either in such a text or in the template. In the first case, a mark behind every character
that begins a control token breaks it. In the second case, a mark before everything that could
complete what the template began does. Knows no tokenizer and no conversation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from jinja2 import Environment
from jinja2.exceptions import TemplateSyntaxError


class Breaks:
    """The places of marks in the texts of one model's clients."""

    def __init__(self, names: Iterable[str], template: str) -> None:
        """`names` are those of the control tokens, `template` is the source of the chat
        template.
        """
        names = list(names)
        begins = _Begins(template, longest=max(map(len, names), default=1))
        rests = {
            name[at:] for name in names for at in range(1, len(name)) if begins.may_write(name[:at])
        }
        self._first_chars = any_of({name[0] for name in names})
        self._rests = any_of(rests)
        self._begun_rests = {rest[:at] for rest in rests for at in range(1, len(rest))}

    def needs_mark(self, text: str) -> bool:
        """Whether `text` could become a part of a control token. About 10 ns per character of
        ordinary text.
        """
        return bool(
            self._first_chars.search(text)
            or self._rests.search(text)
            or text.strip() in self._begun_rests
        )

    def mark(self, text: str, mark: str) -> str:
        """`text` with `mark` wherever it is needed."""
        if (core := text.strip()) in self._begun_rests:
            text = text.replace(core, mark + core, 1)
        text = self._rests.sub(rf"{mark}\g<0>", text)
        return self._first_chars.sub(rf"\g<0>{mark}", text)


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the longest name at a place, as tokenizers match; without names it matches
    nothing.
    """
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


class _Begins:
    """What a chat template may have written before it writes a client's text."""

    def __init__(self, template: str, longest: int) -> None:
        """`longest` is the length of the longest start that will be asked for."""
        self._literals = _literals(template)
        ends = [text[-longest:] for text in self._literals]
        self._ends = {text[at:] for text in ends for at in range(len(text))}

    def may_write(self, start: str) -> bool:
        """Whether the text before could end with `start`, possibly in several parts."""
        return start in self._ends or any(start[at:] in self._literals for at in range(len(start)))


def _literals(template: str) -> set[str]:
    """The strings and the plain text in the source of a template, also as they are where the
    template trims them.
    """
    try:
        tokens = list(Environment().lexer.tokenize(template))
    except TemplateSyntaxError:
        return set()
    found = {str(token.value) for token in tokens if token.type in ("data", "string")}
    return {form for text in found for form in (text, text.rstrip(), text.strip()) if form}

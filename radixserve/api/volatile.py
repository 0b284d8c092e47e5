"""Removes lines that change with every request from the front of system prompts.

Some agents begin each system prompt with a line of bookkeeping. It carries no content, but the
prompt behind it could never be found in the cache. Every dialect's conversations pass here. Knows
no template.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

import re2

from radixserve.errors import ConfigError

log = logging.getLogger("radixserve.api")

_MAX_LINE_CHARS: Final = 4096  # more of a line is not looked at


class Pattern(Protocol):
    """A compiled regular expression."""

    @property
    def pattern(self) -> str:
        """Its text."""

    def match(self, text: str) -> object | None:
        """What matches at the beginning of `text`."""


def compiled(expressions: tuple[str, ...]) -> tuple[Pattern, ...]:
    """The regular expressions of the setting `volatile_prefix`, in RE2's syntax. Their matches are
    found in time of the length of the text, whatever the expression: they run on the event loop,
    where one of Python's could take years. Raises ConfigError for one that is not valid.
    """
    options = re2.Options()
    options.log_errors = False
    try:
        return tuple(re2.compile(each, options) for each in expressions)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0].decode() if isinstance(error, re2.error) else str(error)
        raise ConfigError(
            f"volatile_prefix: not a regular expression in RE2's syntax: {reason}"
        ) from error


class VolatilePrefixes:
    """The lines to remove; logs the first removal by each of the `patterns`."""

    def __init__(self, patterns: tuple[Pattern, ...], on_removal: Callable[[], None]) -> None:
        """`on_removal` is called for every line that is removed."""
        self._patterns = patterns
        self._on_removal = on_removal
        self._named: set[Pattern] = set()

    def removed(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`messages` without such lines at the front of the first message, if it is a system
        message; one that has no other text is left out. O(1), and O(its text) if lines are removed.
        """
        if not messages or messages[0]["role"] != "system":
            return messages
        text = messages[0]["content"]
        rest = self._rest(text)
        if rest is text:
            return messages
        if not rest and len(messages) > 1:
            return messages[1:]
        return [{**messages[0], "content": rest}, *messages[1:]]

    def _rest(self, text: str) -> str:
        start = 0
        while (pattern := self._matching(text, start)) is not None:
            self._note(pattern)
            end = text.find("\n", start)
            start = len(text) if end < 0 else end + 1
        return text[start:] if start else text

    def _matching(self, text: str, start: int) -> Pattern | None:
        """The pattern that the line at `start` begins with."""
        most = start + _MAX_LINE_CHARS
        end = text.find("\n", start, most)
        line = text[start : most if end < 0 else end]
        return next((each for each in self._patterns if line and each.match(line)), None)

    def _note(self, pattern: Pattern) -> None:
        self._on_removal()
        if pattern not in self._named:
            self._named.add(pattern)
            log.info(
                "a system prompt began with a line that volatile_prefix %r names: such lines are "
                "left out, so that the prompt behind them can be cached",
                pattern.pattern,
            )

"""Removes lines that change with every request from the front of system prompts.

Some agents begin each system prompt with a line of bookkeeping. It carries no content, but the
prompt behind it could never be found in the cache. Every dialect's conversations pass here. Knows
no template.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, Final

from radixserve.errors import ConfigError

log = logging.getLogger("radixserve.api")

_MAX_LINE_CHARS: Final = 4096  # more of a line is not looked at


def compiled(expressions: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    """The regular expressions of the setting `volatile_prefix`. Raises ConfigError for one that is
    not valid.
    """
    try:
        return tuple(re.compile(each) for each in expressions)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"volatile_prefix: not a regular expression: {error}") from error


class VolatilePrefixes:
    """The lines to remove; logs the first removal by each of the `patterns`."""

    def __init__(
        self, patterns: tuple[re.Pattern[str], ...], on_removal: Callable[[], None]
    ) -> None:
        """`on_removal` is called for every line that is removed."""
        self._patterns = patterns
        self._on_removal = on_removal
        self._named: set[re.Pattern[str]] = set()

    def removed(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`messages` without such lines at the front of the first message, if it is a system
        message; one that has no other text is left out. O(1) but for what is removed.
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
        while (pattern := self._matching(text)) is not None:
            self._note(pattern)
            text = text.partition("\n")[2]
        return text

    def _matching(self, text: str) -> re.Pattern[str] | None:
        end = text.find("\n", 0, _MAX_LINE_CHARS)
        line = text[: _MAX_LINE_CHARS if end < 0 else end]
        return next((each for each in self._patterns if line and each.match(line)), None)

    def _note(self, pattern: re.Pattern[str]) -> None:
        self._on_removal()
        if pattern not in self._named:
            self._named.add(pattern)
            log.info(
                "a system prompt began with a line that volatile_prefix %r names: such lines are "
                "left out, so that the prompt behind them can be cached",
                pattern.pattern,
            )

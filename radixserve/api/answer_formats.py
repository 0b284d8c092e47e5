"""How the model served writes tool calls and reasoning. Known once, at start."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from radixserve.parsing.formats import FORMATS, Format, detect_tool_format
from radixserve.parsing.reasoning import REASONING_FORMATS, ReasoningFormat, detect_reasoning

if TYPE_CHECKING:
    from radixserve.text.client import TokenizerClient

log = logging.getLogger("radixserve.api")
_UNKNOWN_FORMAT = (
    "the chat template has a place for tools, but how its model writes calls is not known: calls "
    "in the form <tool_call>{...}</tool_call> are found, all others are text (--tool-parser, "
    "docs/tools.md)"
)

_OTHER_THAN_TOLD = (
    "the chat template has no place for tools, so the model is told to call them in the format "
    "generic; calls in it stay text, because tool_parser is %s"
)


@dataclass(frozen=True, slots=True)
class AnswerFormats:
    """The two formats; `reasoning` is None for a model that does not set reasoning apart."""

    tools: Format
    reasoning: ReasoningFormat | None

    @classmethod
    def of(
        cls, tokenizer: TokenizerClient, tool_parser: str = "auto", reasoning_parser: str = "auto"
    ) -> AnswerFormats:
        """The formats that the settings name; "auto" finds them in the chat template. A model whose
        template has no place for tools writes them as the server's own instructions say.
        """
        template = tokenizer.chat_template or ""
        found = detect_tool_format(template) if tokenizer.has_tools else None
        if found is None and tokenizer.has_tools and tool_parser == "auto":
            log.warning(_UNKNOWN_FORMAT)
        tools = FORMATS[(found or "generic") if tool_parser == "auto" else tool_parser]
        if not tokenizer.has_tools and type(tools.calls) is not type(FORMATS["generic"].calls):
            log.warning(_OTHER_THAN_TOLD, tool_parser)
        if reasoning_parser == "auto":
            return cls(tools, detect_reasoning(template))
        return cls(tools, REASONING_FORMATS.get(reasoning_parser))

    def shown_tokens(self, tokenizer: TokenizerClient, *, with_tools: bool) -> frozenset[int]:
        """The special tokens that a parser must see as text."""
        markers: Iterable[str] = self.reasoning.markers if self.reasoning else ()
        if with_tools:
            markers = (*markers, *self.tools.markers)
        ids = (tokenizer.token_id(marker) for marker in markers)
        return frozenset(token_id for token_id in ids if token_id is not None)

    def end_tokens(self, tokenizer: TokenizerClient) -> tuple[int, ...]:
        """The tokens that end a turn with calls, besides the usual stop tokens."""
        ids = (tokenizer.token_id(name) for name in self.tools.ends)
        return tuple(token_id for token_id in ids if token_id is not None)

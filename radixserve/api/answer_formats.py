"""How the model served writes tool calls and reasoning. Known once, at start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from radixserve.errors import ConfigError
from radixserve.parsing.formats import FORMATS, Format, detect_tool_format
from radixserve.parsing.reasoning import REASONING_FORMATS, ReasoningFormat, detect_reasoning

if TYPE_CHECKING:
    from radixserve.text.client import TokenizerClient


def check_names(tool_parser: str, reasoning_parser: str) -> None:
    """Raises ConfigError unless both are "auto" or names of formats; "none" stands for no
    reasoning.
    """
    tools, reasoning = ["auto", *FORMATS], ["auto", "none", *REASONING_FORMATS]
    for name, value, known in (
        ("tool_parser", tool_parser, tools),
        ("reasoning_parser", reasoning_parser, reasoning),
    ):
        if value not in known:
            raise ConfigError(
                f"{name} = {value!r} is not valid: expected one of {', '.join(known)}"
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

        Raises:
            ConfigError: there is no such format.
        """
        check_names(tool_parser, reasoning_parser)
        template = tokenizer.chat_template or ""
        found = detect_tool_format(template) if tokenizer.has_tools else None
        tools = FORMATS[(found or "generic") if tool_parser == "auto" else tool_parser]
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

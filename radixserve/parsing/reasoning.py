"""How models set their reasoning apart from the answer, and which of these ways a chat template
knows.

Reasoning stands at the beginning of an answer only: a tag in the middle of a text is text, because
people ask models about such tags. Tool calls within reasoning are reasoning. The parser for harmony
reads its channels itself (`radixserve.parsing.harmony`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """A pair of markers around the reasoning.

    Attributes:
        ignored: markers that some of these models write around the answer itself.
    """

    name: str
    begin: str
    end: str
    ignored: tuple[str, ...] = ()

    @property
    def markers(self) -> frozenset[str]:
        """Strings that a tokenizer may hide as special tokens and the parser must see."""
        return frozenset((self.begin, self.end, *self.ignored))

    def opened_by(self, prompt: str) -> bool:
        """Whether the text of the answer to this prompt starts inside the reasoning."""
        return prompt.rstrip().endswith(self.begin.rstrip())


THINK = ReasoningFormat("think", "<think>", "</think>")
HARMONY = ReasoningFormat("harmony", "<|channel|>analysis<|message|>", "<|end|>")

REASONING_FORMATS = {
    each.name: each
    for each in (
        HARMONY,
        ReasoningFormat("seed", "<seed:think>", "</seed:think>"),
        ReasoningFormat("longcat", "<longcat_think>", "</longcat_think>"),
        ReasoningFormat("kimi_vl", "◁think▷", "◁/think▷"),
        ReasoningFormat(
            "cohere",
            "<|START_THINKING|>",
            "<|END_THINKING|>",
            ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        ),
        ReasoningFormat("mistral", "[THINK]", "[/THINK]"),
        THINK,
        ReasoningFormat("thinking", "<thinking>", "</thinking>"),
    )
}
"""Every format by its name; those with markers of their own before the common ones."""


def detect_reasoning(chat_template: str) -> ReasoningFormat | None:
    """The reasoning format of a model with this chat template; None if it knows none.

    The end marker is enough: many templates only remove old reasoning from history.
    """
    if "<|channel|>" in chat_template and "<|message|>" in chat_template:
        return HARMONY
    for each in REASONING_FORMATS.values():
        if each is not HARMONY and (each.begin in chat_template or each.end in chat_template):
            return each
    return None

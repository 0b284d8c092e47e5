"""How models set their reasoning apart from the answer, and which of these ways a chat template
knows.

Reasoning stands at the beginning of an answer only: a tag in the middle of a text is text, because
people ask models about such tags. Tool calls within reasoning are reasoning. The parser for harmony
reads its channels itself (`radixserve.parsing.harmony`).
"""

from __future__ import annotations

from dataclasses import dataclass

from radixserve.parsing.harmony import HarmonyCalls


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """A pair of markers around the reasoning.

    Attributes:
        markers: strings that a tokenizer may hide as special tokens and the parser must see.
        ignored: those of them that stand around the answer itself and mean nothing.
    """

    name: str
    begin: str
    end: str
    markers: frozenset[str]
    ignored: tuple[str, ...] = ()

    def opened_by(self, prompt: str) -> bool:
        """Whether the text of the answer to this prompt starts inside the reasoning."""
        return prompt.rstrip().endswith(self.begin.rstrip())


def _tags(name: str, begin: str, end: str, *ignored: str) -> ReasoningFormat:
    return ReasoningFormat(name, begin, end, frozenset((begin, end, *ignored)), ignored)


HARMONY = ReasoningFormat(
    "harmony", "<|channel|>analysis<|message|>", "<|end|>", HarmonyCalls.markers
)

REASONING_FORMATS = {
    each.name: each
    for each in (
        HARMONY,
        _tags("seed", "<seed:think>", "</seed:think>"),
        _tags("longcat", "<longcat_think>", "</longcat_think>"),
        _tags("kimi_vl", "◁think▷", "◁/think▷"),
        _tags(
            "cohere",
            "<|START_THINKING|>",
            "<|END_THINKING|>",
            "<|START_RESPONSE|>",
            "<|END_RESPONSE|>",
        ),
        _tags("mistral", "[THINK]", "[/THINK]"),
        _tags("think", "<think>", "</think>"),
        _tags("thinking", "<thinking>", "</thinking>"),
    )
}
"""Every format by its name."""


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

"""How a model wants the two sides of a gap that it fills: between which control tokens, in which
order. Told by the names of the tokenizer's control tokens. Knows no requests.

Most models want the prefix first, for example

    <|fim_prefix|> what stands before <|fim_suffix|> what stands behind <|fim_middle|>

and write what stands between. A tokenizer may have such tokens although its model was not trained
with them; then the answer is of little use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Infill:
    """The way of one model.

    Attributes:
        before, between, behind: the tokens around the two sides.
        suffix_first: the suffix stands before the prefix.
        ends: tokens that end what is filled in, besides the usual ones.
    """

    before: int
    between: int
    behind: tuple[int, ...]
    suffix_first: bool
    ends: tuple[int, ...]

    def prompt(self, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """The tokens of a prompt whose answer stands between `prefix` and `suffix`."""
        first, second = (suffix, prefix) if self.suffix_first else (prefix, suffix)
        return [self.before, *first, self.between, *second, *self.behind]


# Names of `before`, `between` and `behind`, and whether the suffix comes first.
_FAMILIES: tuple[tuple[str, str, str | None, bool], ...] = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", False),  # Qwen, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", False),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>", False),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", False),  # DeepSeek
    ("[SUFFIX]", "[PREFIX]", None, True),  # Codestral
)
# Models write one of these where a file or a text ends.
_ENDS = (
    *("<|endoftext|>", "<|fim_pad|>", "<|file_sep|>", "<|file_separator|>", "<|repo_name|>"),
    *("<fim_pad>", "<fim-pad>", "<file_sep>", "<repo_name>"),
)


def find_infill(control: Mapping[str, int]) -> Infill | None:
    """The way of the model whose control tokens have these names and ids; None if none of them
    stands around a side of a gap.
    """
    for before, between, behind, suffix_first in _FAMILIES:
        names = [name for name in (before, between, behind) if name is not None]
        if all(name in control for name in names):
            ids = [control[name] for name in names]
            ends = [control[name] for name in _ENDS if name in control]
            return Infill(ids[0], ids[1], tuple(ids[2:]), suffix_first, (*ids, *ends))
    return None

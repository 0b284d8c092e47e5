"""What became of each class of models that `families.py` tried, and the table of it in
docs/models.md. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

RESULTS = Path(__file__).with_suffix(".json")
MOST_DIFFERENCE = 2e-5


class Outcome(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What became of one tiny model."""

    name: str  # its model type, and what is special about it
    kind: str  # the class
    refusal: str = ""  # the sentence that refuses it
    error: str = ""  # what went wrong otherwise
    path: str = ""  # "fast" or "generic", if it is served
    exact: bool = False  # the same bits however it is cut, batched, cached and evicted
    inexact_reason: str = ""  # what the server says about it
    tokens_equal: bool = False  # greedy tokens are those of transformers' generate
    difference: float = 0.0  # of log-probabilities from transformers', at most

    @property
    def is_served(self) -> bool:
        """Whether it was loaded and answered."""
        return bool(self.path)

    @property
    def is_equal(self) -> bool:
        """Whether it computes what transformers does."""
        return self.tokens_equal and self.difference <= MOST_DIFFERENCE

    @property
    def is_right(self) -> bool:
        """Whether it is served as it should be."""
        return self.is_served and self.exact and self.is_equal


class Results(msgspec.Struct, kw_only=True):
    """The outcomes of one run, and the versions that they hold for."""

    versions: dict[str, str]
    outcomes: list[Outcome]


def read_results() -> Results:
    """The committed results."""
    return msgspec.json.decode(RESULTS.read_bytes(), type=Results)


def write_results(results: Results) -> None:
    """Write the results, one model a line, so that a change shows which models it concerns."""
    lines = ",\n".join(f"    {msgspec.json.encode(each).decode()}" for each in results.outcomes)
    versions = msgspec.json.encode(results.versions).decode()
    RESULTS.write_text(f'{{\n  "versions": {versions},\n  "outcomes": [\n{lines}\n  ]\n}}\n')


@dataclass(frozen=True, slots=True)
class Counts:
    """How many models were tried, and what became of them."""

    tried: int
    served: int
    right: int
    fast: int
    refused: int

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Counts:
        return cls(
            tried=len(outcomes),
            served=sum(each.is_served for each in outcomes),
            right=sum(each.is_right for each in outcomes),
            fast=sum(each.path == "fast" for each in outcomes),
            refused=sum(bool(each.refusal) for each in outcomes),
        )

    def sentence(self) -> str:
        return (
            f"{self.tried} tried: {self.served} served, {self.fast} of them on the fast path; "
            f"{self.right} exact and equal to transformers; {self.refused} refused."
        )


def markdown() -> str:
    """The tables of docs/models.md: what is served, then what is refused."""
    results = read_results()
    served = [each for each in results.outcomes if each.is_served]
    others = [each for each in results.outcomes if not each.is_served]
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return "\n".join(
        (
            f"With {versions}. {Counts.of(results.outcomes).sentence()}",
            "",
            "| model type | class | path | exact | as transformers | notes |",
            "|---|---|---|---|---|---|",
            *(_served_row(each) for each in served),
            "",
            "| model type | class | refused because |",
            "|---|---|---|",
            *(f"| {each.name} | {each.kind} | {each.refusal or each.error} |" for each in others),
            "",
        )
    )


def _served_row(outcome: Outcome) -> str:
    exact, equal = _yes(outcome.exact), _yes(outcome.is_equal)
    cells = (outcome.name, outcome.kind, outcome.path, exact, equal, outcome.inexact_reason)
    return f"| {' | '.join(cells)} |"


def _yes(value: bool) -> str:
    return "yes" if value else "no"

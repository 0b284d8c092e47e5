"""docs/models.md says what happens: some of its models are tried again. The rest is tried by
`python benchmarks/families.py`.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from families import attempt
from families_table import MOST_DIFFERENCE, Outcome, read_results

from tests.tiny_families import NAMES

SAMPLE = (
    "llama",
    "stablelm",  # its layers drop keywords that they do not know
    "gemma3_text: full attention",  # its rotary positions depend on the kind of a layer
    "granitemoehybrid: attention only",  # has sizes of states, but no layer with a state
    "minicpm3",  # keys and values have different widths
    "laguna: full attention",  # computes the curves of its gates itself
    "jetmoe",  # gives more key heads to its attention than its configuration counts
    "phimoe: no window",
    "qwen3_next",
    "bart",
)


@cache
def committed() -> dict[str, Outcome]:
    return {each.name: each for each in read_results().outcomes}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_model_is_served_or_refused_as_the_table_says(name: str) -> None:
    expected, found = committed()[name], attempt(name)
    assert found.difference <= MOST_DIFFERENCE
    found.difference = expected.difference
    assert found == expected


def test_every_class_is_in_the_table() -> None:
    assert sorted(committed()) == sorted(NAMES)


def test_what_is_not_served_is_refused_by_a_sentence() -> None:
    for outcome in committed().values():
        assert outcome.is_served or outcome.refusal.endswith("."), outcome


def test_all_that_claims_to_be_exact_is_exact_and_computes_what_transformers_does() -> None:
    for outcome in committed().values():
        if outcome.is_served:
            assert outcome.is_equal, outcome
            assert outcome.exact != bool(outcome.inexact_reason), outcome

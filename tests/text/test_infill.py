"""Which control tokens stand around the two sides of a gap, by family of models."""

from __future__ import annotations

import pytest

from radixserve.text.infill import find_infill

FAMILIES = [
    ["<|fim_prefix|>", "prefix", "<|fim_suffix|>", "suffix", "<|fim_middle|>"],
    ["<fim_prefix>", "prefix", "<fim_suffix>", "suffix", "<fim_middle>"],
    ["<fim-prefix>", "prefix", "<fim-suffix>", "suffix", "<fim-middle>"],
    ["<｜fim▁begin｜>", "prefix", "<｜fim▁hole｜>", "suffix", "<｜fim▁end｜>"],
    ["[SUFFIX]", "suffix", "[PREFIX]", "prefix"],
]
SIDES = {"prefix": 1, "suffix": 2}


@pytest.mark.parametrize("written", FAMILIES)
def test_every_family_has_its_tokens_and_its_order(written: list[str]) -> None:
    control = {name: 10 + i for i, name in enumerate(written) if name not in SIDES}
    infill = find_infill({"<x>": 5, "<|endoftext|>": 6} | control)
    assert infill is not None
    assert infill.prompt([1], [2]) == [SIDES.get(name) or control[name] for name in written]
    assert set(infill.ends) == {*control.values(), 6}
    for name in control:
        assert find_infill({each: i for each, i in control.items() if each != name}) is None


def test_a_side_may_be_empty() -> None:
    infill = find_infill({"<fim_prefix>": 7, "<fim_suffix>": 8, "<fim_middle>": 9})
    assert infill is not None
    assert infill.prompt([], [2, 3]) == [7, 8, 2, 3, 9]

"""Bit for bit: however a sequence is cut, wherever its K/V lies and whoever shares its steps, its
logits stay.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.kernels.cpu import levels
from radixserve.model.runner import Runner
from radixserve.step import Chunk, Logits
from tests.tiny import CONFIGS, IN_BFLOAT16, QUANTISED, VOCAB, chunk, chunks_of, tiny_runner

pytestmark = pytest.mark.slow

NAMES = (*CONFIGS, *IN_BFLOAT16, *QUANTISED)
NUM_TOKENS = 500  # nearly two groups of tiles
SLOTS = 4096


@cache
def runner(name: str) -> Runner:
    return tiny_runner(name, SLOTS)


@cache
def tokens(seed: int) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, VOCAB, NUM_TOKENS).tolist()
    return ids


@cache
def one_prefill(name: str) -> torch.Tensor:
    return logits(runner(name), chunks_of(tokens(0), range(NUM_TOKENS), ()))


def logits(run: Runner, steps: list[Chunk]) -> torch.Tensor:
    """Each chunk as a step of its own, on a pool full of another sequence's leftovers."""
    run.pool.k.fill_(3.0)
    run.pool.v.fill_(-2.0)
    return torch.cat([run.forward([step]) for step in steps])


def permuted(seed: int) -> list[int]:
    slots: list[int] = np.random.default_rng(seed).permutation(SLOTS).tolist()
    return slots


names = st.sampled_from(sorted(NAMES))
cuts = st.lists(st.integers(1, NUM_TOKENS - 1), unique=True, max_size=8).map(sorted)


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_claims_to_be_exact(name: str) -> None:
    assert runner(name).loaded.inexact_reason is None
    assert runner(name).loaded.exact


@pytest.mark.parametrize("name", NAMES)
def test_token_by_token_equals_one_prefill(name: str) -> None:
    one_by_one = chunks_of(tokens(0), permuted(1), range(1, NUM_TOKENS))
    assert torch.equal(logits(runner(name), one_by_one), one_prefill(name))


@pytest.mark.parametrize("level", [each.name.lower() for each in levels.available()])
@pytest.mark.parametrize(
    "name", ["llama_grouped", "llama_grouped_bfloat16", "qwen3_in_panels_bfloat16", QUANTISED[1]]
)
def test_every_level_of_the_processor_is_exact(name: str, level: str) -> None:
    levels.limit(level)
    try:
        run = tiny_runner(name, SLOTS)
        assert run.loaded.exact
        whole = logits(run, chunks_of(tokens(0), range(NUM_TOKENS), ()))
        one_by_one = chunks_of(tokens(0), permuted(1), (*range(1, 60), 100, 290, 420))
        assert torch.equal(logits(run, one_by_one), whole)
    finally:
        levels.limit("auto")


@settings(max_examples=40, deadline=None)
@given(names, cuts, st.integers(0, 10))
def test_cuts_and_slots_change_nothing(name: str, cut_at: list[int], seed: int) -> None:
    assert torch.equal(
        logits(runner(name), chunks_of(tokens(0), permuted(seed), cut_at)), one_prefill(name)
    )


@settings(max_examples=40, deadline=None)
@given(names, cuts, st.data())
def test_batch_mates_change_nothing(name: str, cut_at: list[int], data: st.DataObject) -> None:
    run, slots = runner(name), permuted(3)
    parts = []
    for ours in chunks_of(tokens(0), slots, cut_at):
        mates = [
            mate(i, slots, data.draw(st.integers(1, NUM_TOKENS)))
            for i in range(data.draw(st.integers(0, 4)))
        ]
        place = data.draw(st.integers(0, len(mates)))
        out = run.forward([*mates[:place], ours, *mates[place:]])
        first = sum(m.num_logits for m in mates[:place])
        parts.append(out[first : first + ours.num_logits])
    assert torch.equal(torch.cat(parts), one_prefill(name))


def mate(index: int, slots: list[int], num_tokens: int) -> Chunk:
    own = slots[NUM_TOKENS * (index + 1) : NUM_TOKENS * (index + 2)]
    return chunk(tokens(index + 1)[:num_tokens], 0, own)


@settings(max_examples=20, deadline=None)
@given(names, st.integers(64, 490), st.integers(2, 8))
def test_decoding_together_over_shared_slots_changes_nothing(
    name: str, shared: int, count: int
) -> None:
    run, slots, ids = runner(name), permuted(5), tokens(0)
    run.forward([chunk(ids[:shared], 0, slots)])
    tables = [
        slots[:shared] + slots[NUM_TOKENS + 20 * i : NUM_TOKENS + 20 * (i + 1)]
        for i in range(count)
    ]
    for position in range(shared, shared + 5):
        steps = [
            chunk([(ids[position] + i) % VOCAB], position, table) for i, table in enumerate(tables)
        ]
        together = run.forward(steps)
        assert torch.equal(together, torch.cat([run.forward([step]) for step in steps]))
    assert (
        torch.equal(together[0], logits(run, chunks_of(ids[: shared + 1], slots, ()))[-1])
        or position > shared
    )


@settings(max_examples=20, deadline=None)
@given(names, cuts, st.data())
def test_rows_whose_logits_nobody_wants_change_nothing(
    name: str, cut_at: list[int], data: st.DataObject
) -> None:
    chunks = chunks_of(tokens(0), permuted(7), cut_at)
    for each in chunks:
        each.logits = data.draw(st.sampled_from(Logits))
    rows = [range(each.stop - each.num_logits, each.stop) for each in chunks]
    assert torch.equal(logits(runner(name), chunks), one_prefill(name)[np.concatenate(rows)])

"""K/V of another dtype than the model's: however a sequence is cut, wherever its K/V lies and
whoever shares its steps, its logits stay, and they are near those of the model's own dtype.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from radixserve.model.load import prepare_model
from radixserve.model.runner import Runner
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool
from tests.tiny import CPU, VOCAB, chunk, chunks_of, tiny_model

NUM_TOKENS, SLOTS = 330, 2048
CASES = (
    ("llama_grouped", torch.bfloat16),
    ("llama_grouped", torch.int8),
    ("llama_grouped_bfloat16", torch.float32),
    ("llama_grouped_bfloat16", torch.uint8),
    ("generic", torch.int8),  # the model's own modules: torch writes K/V
)
every_case = pytest.mark.parametrize(("name", "kv"), CASES, ids=str)


@cache
def runner(name: str, kv: torch.dtype | None) -> Runner:
    loaded = prepare_model(tiny_model(name), CPU, kv)
    return Runner(loaded, KVPool(loaded.shape, SLOTS, CPU))


def tokens(seed: int) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, VOCAB, NUM_TOKENS).tolist()
    return ids


def logits(run: Runner, steps: list[Chunk]) -> torch.Tensor:
    """Each chunk as a step of its own, on a pool full of leftovers."""
    run.pool.k.fill_(3)
    run.pool.v.fill_(2)
    return torch.cat([run.forward([step]) for step in steps])


@cache
def one_prefill(name: str, kv: torch.dtype | None) -> torch.Tensor:
    return logits(runner(name, kv), chunks_of(tokens(0), range(NUM_TOKENS), ()))


def permuted(seed: int) -> list[int]:
    slots: list[int] = np.random.default_rng(seed).permutation(SLOTS).tolist()
    return slots


@every_case
def test_it_claims_to_be_exact_and_has_the_dtype_that_was_asked_for(
    name: str, kv: torch.dtype
) -> None:
    loaded = runner(name, kv).loaded
    assert loaded.exact, loaded.inexact_reason
    assert loaded.shape.dtype == kv
    assert loaded.dtype == tiny_model(name).dtype


@every_case
def test_cuts_and_slots_change_nothing(name: str, kv: torch.dtype) -> None:
    whole = one_prefill(name, kv)
    for cuts in (range(1, NUM_TOKENS), (100, 290), (64, 128, 129)):
        assert torch.equal(logits(runner(name, kv), chunks_of(tokens(0), permuted(1), cuts)), whole)


@every_case
def test_batch_mates_change_nothing(name: str, kv: torch.dtype) -> None:
    run, slots = runner(name, kv), permuted(3)
    parts = []
    for ours in chunks_of(tokens(0), slots, (70, 71, 200)):
        mates = [
            chunk(tokens(1 + i)[: 50 + 90 * i], 0, slots[NUM_TOKENS * (i + 1) :]) for i in range(2)
        ]
        out = run.forward([mates[0], ours, mates[1]])
        first = mates[0].num_logits
        parts.append(out[first : first + ours.num_logits])
    assert torch.equal(torch.cat(parts), one_prefill(name, kv))


@every_case
def test_logits_are_near_those_of_the_models_own_dtype(name: str, kv: torch.dtype) -> None:
    own, found = one_prefill(name, None), one_prefill(name, kv)
    assert not torch.equal(own, found), "the pool has another dtype"
    spread = own - own.mean(-1, keepdim=True)
    assert (found - own).norm() / spread.norm() < 0.2

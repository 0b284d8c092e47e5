"""The embedded default model: transformers' own tokens, and the same bits however the work
is cut.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from radixserve.checkpoints.embedded import embedded_model
from radixserve.model.load import load_model
from radixserve.model.runner import Runner
from radixserve.tensors.kv import KVPool
from tests.tiny import CPU, chunk, chunks_of, greedy

pytestmark = pytest.mark.model

NUM_NEW = 24
QUESTIONS = ("What is the capital of France?", "Write one sentence about the sea.")


@pytest.fixture(scope="module")
def runner() -> Runner:
    loaded = load_model(str(embedded_model()), CPU, torch.float32)
    return Runner(loaded, KVPool(loaded.shape, 1024, CPU))


@pytest.fixture(scope="module")
def original() -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        embedded_model(), dtype=torch.float32
    ).eval()
    return model


def prompt_ids(question: str) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    messages = [{"role": "user", "content": question}]
    ids: list[int] = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    return ids


def test_the_facts_of_the_model(runner: Runner) -> None:
    loaded = runner.loaded
    assert (loaded.shape.layers, loaded.shape.kv_heads, loaded.shape.k_dim, loaded.vocab_size) == (
        30,
        3,
        64,
        49152,
    )
    assert (loaded.context_length, loaded.eos_token_ids, loaded.shape.slot_bytes) == (
        8192,
        (2,),
        46_080,
    )
    assert (loaded.exact, loaded.inexact_reason) == (True, None)


@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_tokens_are_those_of_transformers_generate(
    runner: Runner, original: torch.nn.Module, question: str
) -> None:
    prompt = prompt_ids(question)
    ids = torch.tensor([prompt])
    original.generation_config.eos_token_id = None  # type: ignore[union-attr]
    output = original.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_NEW,
        do_sample=False,
        pad_token_id=2,
    )
    assert greedy(runner, prompt, NUM_NEW) == output[0, len(prompt) :].tolist()


def test_cuts_slots_and_batch_mates_change_no_bit(runner: Runner) -> None:
    random = np.random.default_rng(0)
    ids, other = random.integers(0, 49152, (2, 150)).tolist()
    slots = random.permutation(1024).tolist()
    whole = runner.forward([chunk(ids, 0, range(150))])
    for cuts in ((100,), (1,), (63, 64, 65), range(130, 150)):
        parts = [runner.forward([step]) for step in chunks_of(ids, slots, cuts)]
        assert torch.equal(torch.cat(parts), whole)
    for cuts in ((37, 90), range(140, 150)):  # type: ignore[assignment]
        mates = [chunk(other[:n], 0, slots[300:]) for n in range(20, 20 + len(cuts) + 1)]
        steps = zip(mates, chunks_of(ids, slots, cuts), strict=True)
        parts = [runner.forward([guest, own])[guest.num_logits :] for guest, own in steps]
        assert torch.equal(torch.cat(parts), whole)

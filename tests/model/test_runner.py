"""Steps through tiny random models: the tokens are transformers' own, and no cut, slot or
batch-mate changes a bit.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from radixserve.model.runner import Runner
from tests.tiny import CONFIGS, greedy, tiny_model, tiny_runner

PROMPT = [5, 90, 17, 3, 44, 44, 8, 61, 2, 77, 31, 12]


@cache
def runner(name: str) -> Runner:
    return tiny_runner(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_transformers_generate(name: str) -> None:
    assert greedy(runner(name), PROMPT, 20) == generated(name, PROMPT, 20)


def generated(name: str, prompt: list[int], num_tokens: int) -> list[int]:
    """The same tokens by transformers alone, which goes on after an end token too."""
    model, ids = tiny_model(name), torch.tensor([prompt])
    model.generation_config.eos_token_id = None
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False
    )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens

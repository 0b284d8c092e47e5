"""`KVStore` with the real model of transformers: from memory and from the store, the same 20 tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from radixserve.model.embedded import embedded_model
from radixserve.store import KVStore


@pytest.mark.model
@torch.inference_mode()
def test_twenty_greedy_tokens_from_memory_and_from_the_store_are_the_same(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(embedded_model()), dtype=torch.float32).eval()
    prompt = torch.arange(100, 160)[None]
    cache = DynamicCache()
    model(prompt[:, :-1], past_key_values=cache)
    with KVStore(tmp_path / "kv", model) as store:
        assert store.put(prompt[:, :-1], cache) == prompt.shape[1] - 1
    expected = model.generate(prompt, past_key_values=cache, max_new_tokens=20, do_sample=False)
    with KVStore(tmp_path / "kv", model) as store:
        stored, length = store.get(prompt)
    assert length == prompt.shape[1] - 1
    assert torch.equal(expected, model.generate(prompt, past_key_values=stored, max_new_tokens=20, do_sample=False))

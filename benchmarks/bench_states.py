"""What K/V and states of a model with linear attention take, and what a hit saves.

    python benchmarks/bench_states.py [--tokens 4096]

Prints the bytes that sequences of Qwen3.5-9B's shape (three of four layers have linear attention)
take of the budget, beside K/V of as many layers with full attention. Then a random model of some 70
million parameters of that shape serves one long prompt, the same again, and prompts that leave it
in the middle, the second of which finds the state that the first one left there. Prints the time to
the first token, and whether every answer has the bits of the same answer without a cache.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, Qwen3_5TextConfig

from radixserve.cache.kvcache import KVCache
from radixserve.config import Settings
from radixserve.engine.core import EngineCore
from radixserve.engine.scheduler import Limits
from radixserve.engine.state_layout import StateLayout, state_layout
from radixserve.model.load import prepare_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.request import Request, Sampling
from radixserve.tensors.kv import KVShape, StateShape

CPU, VOCAB, NEW, STEP = torch.device("cpu"), 4096, 4, 256
LARGE_KV = KVShape(8, 4, 256, 256, torch.bfloat16)
LARGE_STATES = StateShape((True, True, True, False) * 8, 3 * 8192, 32 * 128 * 128)

Answer = list[tuple[int, float]]
"""Tokens with their logprobs."""


def random_model() -> LoadedModel:
    torch.manual_seed(0)
    config = Qwen3_5TextConfig(
        vocab_size=VOCAB,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        linear_num_key_heads=4,
        linear_num_value_heads=8,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        max_position_embeddings=65_536,
    )
    return prepare_model(AutoModelForCausalLM.from_config(config), CPU)


def layout_of(loaded: LoadedModel) -> StateLayout:
    layout = state_layout(Settings(), loaded)
    assert layout is not None, "the model has states"
    return layout


class Engine:
    """An engine with room for `num_slots` tokens."""

    def __init__(self, loaded: LoadedModel, num_slots: int, *, caches: bool = True) -> None:
        layout = layout_of(loaded)
        states = layout.state_slots(num_slots)
        cache = KVCache(num_slots, slot_bytes=layout.slot_bytes, enabled=caches, second=states)
        runner = Runner(loaded, layout.pool(num_slots, states))
        self.core = EngineCore(runner, cache, Limits(8, STEP))

    def answer(self, prompt: list[int]) -> tuple[Answer, int, float]:
        """The answer, how many tokens were cached, and the seconds to its first token."""
        sampling = Sampling(max_tokens=NEW, seed=1, temperature=1.0, logprobs=0)
        self.core.submit(Request(id="one", prompt_ids=prompt, sampling=sampling), [])
        found, cached, begun, first = [], 0, time.perf_counter(), 0.0
        while self.core.has_work:
            for event in self.core.step():
                first = first or time.perf_counter() - begun
                found += [(each.token_id, each.logprob) for each in event.logprobs or []]
                cached = event.num_cached if event.num_cached is not None else cached
        assert len(found) == NEW
        return found, cached, first


def print_bytes(loaded: LoadedModel) -> None:
    """Bytes of one sequence of the large shape, per token."""
    layout = layout_of(replace(loaded, shape=LARGE_KV, states=LARGE_STATES))
    full = replace(LARGE_KV, layers=len(LARGE_STATES.is_recurrent)).slot_bytes
    state, kv, every = LARGE_STATES.slot_bytes, LARGE_KV.slot_bytes, layout.every
    table = Table("tokens", "K/V", "+ state", f"+ one every {every}", "full attention", "share")
    for tokens in (2048, 8192, 32_768):
        least = kv + state / tokens
        most = kv + state * (2 + tokens // every) / tokens
        row = (f"{kv:,}", f"{least:,.0f}", f"{most:,.0f}", f"{full:,}", f"{most / full:.2f}")
        table.add_row(f"{tokens:,}", *row)
    Console(width=100).print(table)
    print(
        f"A state takes {state:,} bytes; the budget counts {layout.slot_bytes:,} bytes per token."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4096)
    tokens = parser.parse_args().tokens
    loaded = random_model()
    print_bytes(loaded)
    ids = np.random.default_rng(0).integers(2, VOCAB, tokens).tolist()
    middle = ids[: tokens * 5 // 8 + 3]
    prompts = {
        "cold": ids,
        "the same": ids,
        "leaves in the middle": [*middle, 7, 8],
        "leaves there, too": [*middle, 9, 10],
    }
    engine, alone = (Engine(loaded, 4 * tokens, caches=each) for each in (True, False))
    alone.answer(ids[:STEP])  # kernels are compiled and pages made
    table = Table("prompt", "tokens", "cached", "first token", "without a cache", "same bits")
    for name, prompt in prompts.items():
        found, cached, warm = engine.answer(prompt)
        expected, _, cold = alone.answer(prompt)
        row = (f"{len(prompt):,}", f"{cached:,}", f"{1000 * warm:.0f} ms", f"{1000 * cold:.0f} ms")
        table.add_row(name, *row, "yes" if found == expected else "NO")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

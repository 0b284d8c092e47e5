"""What K/V of a model with sliding windows takes, and whether hits across the window are exact.

    python benchmarks/bench_windows.py [--tokens 32768] [--layers 12] [--window 1024]

A random model of Gemma 3's shape (five of six layers attend a window) serves one long prompt, and
then prompts that leave it at several places: in a window, at its edge, across it, and far behind.
Its K/V lies once in window slots and once whole, as without them. Prints the bytes of both, and
whether every answer has the bits of the same answer without a cache: tokens and logprobs.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from radixserve.cache.kvcache import KVCache
from radixserve.config import Settings
from radixserve.engine.core import EngineCore
from radixserve.engine.scheduler import Limits
from radixserve.engine.window_layout import window_layout
from radixserve.model.load import prepare_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.request import Request, Sampling
from radixserve.sizes import format_size
from radixserve.tensors.kv import KVPool

CPU, VOCAB, NEW, STEP = torch.device("cpu"), 512, 4, 256

Answer = list[tuple[int, float]]
"""Tokens with their logprobs."""


def random_model(layers: int, window: int, context: int) -> LoadedModel:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=window,
        max_position_embeddings=context,
    )
    return prepare_model(AutoModelForCausalLM.from_config(config), CPU)


class Engine:
    """An engine with room for `num_slots` tokens, and the most bytes that requests held."""

    def __init__(
        self, loaded: LoadedModel, num_slots: int, *, windowed: bool, caches: bool = True
    ) -> None:
        layout = window_layout(Settings(), loaded) if windowed else None
        windows = None if layout is None else layout.window_slots(num_slots, STEP)
        if layout is not None and windows is not None:
            pool, slot_bytes = layout.pool(num_slots, windows), layout.slot_bytes
        else:
            pool, slot_bytes = KVPool(loaded.shape, num_slots, CPU), loaded.shape.slot_bytes
        self.cache = KVCache(num_slots, slot_bytes=slot_bytes, enabled=caches, second=windows)
        self.core = EngineCore(Runner(loaded, pool), self.cache, Limits(8, STEP))
        self.most_held = 0

    def answer(self, prompt: list[int]) -> tuple[Answer, int, float]:
        """The answer, how many tokens were cached, and the seconds to its end."""
        sampling = Sampling(max_tokens=NEW, seed=1, temperature=1.0, logprobs=0)
        self.core.submit(Request(id="one", prompt_ids=prompt, sampling=sampling), [])
        found, cached, begun = [], 0, time.perf_counter()
        while self.core.has_work:
            for event in self.core.step():
                found += [(each.token_id, each.logprob) for each in event.logprobs or []]
                cached = event.num_cached if event.num_cached is not None else cached
            self.most_held = max(self.most_held, self.cache.bytes()["leased"])
        assert len(found) == NEW
        return found, cached, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--window", type=int, default=1024)
    chosen = parser.parse_args()
    tokens, window = chosen.tokens, chosen.window
    loaded = random_model(chosen.layers, window, 2 * tokens)
    ids = np.random.default_rng(0).integers(2, VOCAB, tokens + 1).tolist()
    places = [window // 2, window - 1, window, window + 1, 2 * window, tokens // 2 + 7, tokens]
    prompts = [[*ids[:place], (ids[place] + 1) % VOCAB, 7] for place in places]

    engines = {
        "window slots": Engine(loaded, 2 * tokens, windowed=True),
        "whole": Engine(loaded, 2 * tokens, windowed=False),
    }
    alone = Engine(loaded, 2 * tokens, windowed=False, caches=False)
    for engine in engines.values():
        engine.answer(ids[:tokens])
    print_bytes(engines)
    table = Table("prompt leaves at", "cached", "seconds", "without a cache", "same bits")
    for place, prompt in zip(places, prompts, strict=True):
        expected, _, seconds = alone.answer(prompt)
        for name, engine in engines.items():
            found, cached, warm = engine.answer(prompt)
            row = (f"{place:,}, {name}", f"{cached:,}", f"{warm:.3f}", f"{seconds:.3f}")
            table.add_row(*row, "yes" if found == expected else "NO")
    Console(width=100).print(table)


def print_bytes(engines: dict[str, Engine]) -> None:
    """What both keep, in bytes and as a share of whole K/V."""
    whole = engines["whole"]
    table = Table("K/V", "budget per token", "share", "held while it runs", "share")
    for name, engine in engines.items():
        per_token, most = engine.cache.slots.slot_bytes, engine.most_held
        shares = per_token / whole.cache.slots.slot_bytes, most / whole.most_held
        row = (f"{per_token:,}", f"{shares[0]:.3f}", format_size(most), f"{shares[1]:.3f}")
        table.add_row(name, *row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

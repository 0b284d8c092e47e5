"""A decode step of a mixture of experts beside the time of reading what it multiplies by.

    python benchmarks/bench_experts.py [--rounds 150] [--dtype bfloat16]

The model has random weights and the proportions of Qwen3-30B-A3B: an expert's inner size is 3/8 of
the width, heads have 128 numbers, 8 experts compute a token. It has 64 experts in each of 12
layers: about a billion parameters. A step reads the weights of attention, the router, the output
layer, and each expert that one of its rows chose, once. How many bytes these are is counted by
looking at the rows' choices. Memory speed is that at which all threads add up half a gigabyte in
large pages (`torch.sum`). Steps and sums take turns, and the shortest of each counts, because other
work on the machine comes and goes.

It also compares the logits of each row of the largest batch with those of the row alone, bit by
bit.
"""

from __future__ import annotations

import argparse
import math
import time
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from bench_step import Work, ms, table
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig

from radixserve.kernels.cpu.pages import empty
from radixserve.model.load import prepare_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.operations import RunNow
from radixserve.model.routes import Routes
from radixserve.model.runner import Runner
from radixserve.model.weights import Experts, Router
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool

BATCHES = (1, 2, 4, 8, 16)
CONTEXT = 100  # tokens of each row
READ = 1 << 27  # floats
DEVICE = torch.device("cpu")


def shortest(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """The least seconds of each, measured in turns."""
    found = dict.fromkeys(works, math.inf)
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            found[name] = min(found[name], time.perf_counter() - start)
    return found


def loaded_model(dtype: torch.dtype) -> LoadedModel:
    config = Qwen3MoeConfig(
        vocab_size=32_768,
        hidden_size=1024,
        moe_intermediate_size=384,
        num_experts=64,
        num_experts_per_tok=8,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=2,
        head_dim=128,
        norm_topk_prob=True,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    print(f"{sum(each.numel() for each in model.parameters()) / 1e6:.0f}M parameters")
    return prepare_model(model, DEVICE)


def chunks(batch: int) -> list[Chunk]:
    """One token for each row, over a context of its own."""
    slots = np.arange(batch * CONTEXT, dtype=np.int32).reshape(batch, CONTEXT)
    return [Chunk(np.array([5 + i], np.int32), CONTEXT - 1, slots[i]) for i in range(batch)]


class Choices:
    """The experts that the rows of a step choose, layer by layer."""

    def __init__(self) -> None:
        self.used: list[int] = []

    def of(self, run: Runner, step: list[Chunk]) -> list[int]:
        self.used.clear()
        plain, decoder = RunNow.route, run.loaded.decoder
        assert decoder is not None, "the decoder serves this model"

        def route(operations: RunNow, router: Router, x: torch.Tensor) -> Routes:
            routes = plain(operations, router, x)
            self.used.append(len(np.unique(routes.chosen.numpy())))
            return routes

        with (
            mock.patch.object(RunNow, "route", route),
            mock.patch.object(decoder, "most_recorded", 0),
        ):
            run.forward(step)
        return list(self.used)


def bytes_read(run: Runner, used: list[int]) -> int:
    """The bytes of weights that a step reads, where so many experts of each layer are used."""
    decoder = run.loaded.decoder
    assert decoder is not None, "the decoder serves this model"
    found = _bytes(decoder.weights.head.weight)
    for layer, experts in zip(decoder.weights.layers, used, strict=True):
        mlp = layer.mlp
        assert isinstance(mlp, Experts), "every layer has experts"
        found += sum(map(_bytes, (layer.attention.qkv, layer.attention.o, mlp.router.logits)))
        found += experts * (_bytes(mlp.up.weights[0]) + _bytes(mlp.down.weights[0]))
    return found


def _bytes(weight: Any) -> int:
    memory: torch.Tensor = weight.panels.memory
    return memory.numel() * memory.element_size()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args()
    loaded = loaded_model(getattr(torch, options.dtype))
    run = Runner(loaded, KVPool(loaded.shape, max(BATCHES) * CONTEXT, DEVICE))
    memory, rows = empty(READ).fill_(1.0), []
    for batch in BATCHES:
        step = chunks(batch)
        used = Choices().of(run, step)
        times = shortest({"step": partial(run.forward, step), "memory": memory.sum}, options.rounds)
        size, speed = bytes_read(run, used), 4 * READ / times["memory"]
        limit = size / speed
        each = (f"{sum(used) / len(used):.1f}", f"{size / 1e6:.0f}", f"{speed / 1e9:.1f}")
        ratio = f"{times['step'] / limit:.2f}x"
        rows.append([str(batch), *each, ms(limit), ms(times["step"]), ratio])
    columns = ["batch", "experts a layer", "MB read", "GB/s", "limit, ms", "step, ms", "step/limit"]
    table("One decode step of a mixture of experts", columns, rows)
    together = run.forward(chunks(max(BATCHES)))
    alone = [run.forward([each]) for each in chunks(max(BATCHES))]
    same = torch.equal(together, torch.cat(alone))
    print("batch-mates change no bit" if same else "batch-mates change bits")


if __name__ == "__main__":
    main()

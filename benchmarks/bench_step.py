"""Where a step's time goes: decode with and without sharing, prefill, and the attention kernel
beside torch's.

    python benchmarks/bench_step.py [--dtype bfloat16] [--rounds 15] [--model FOLDER_OR_NAME]
                                    [--threads N] [--scattered]

What is compared takes turns round by round, because other work on the machine comes and goes; a
table shows medians and their ratios. Slots lie in runs, as a server hands them out before much was
evicted, or scattered: the worst that can happen. "Generic" is transformers' own modules with
torch's linears in the same dtype, and our attention kernel.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from radixserve.checkpoints.embedded import embedded_model
from radixserve.kernels.attention import LayerAttention
from radixserve.kernels.cpu import levels
from radixserve.kernels.cpu.attention.call import attend_cpu
from radixserve.kernels.step import AttentionPlan
from radixserve.model.attention import CPU as CPU_KERNEL
from radixserve.model.load import load_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool, KVShape

PREFIX, PRIVATE = 1024, 100
BATCHES = (1, 8, 16)
LENGTHS = (1024, 2048)
ONE_PREFILL = 1424
SLOTS = 20_480
DEVICE = torch.device("cpu")
SLOT_ORDER = np.arange(SLOTS, dtype=np.int32)

Work = Callable[[], object]


def interleaved(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """Median seconds of each, measured in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def decode_chunks(batch: int, shared: bool) -> list[Chunk]:
    """One token each, over a prefix of 1,024 tokens in the same slots or in everybody's own, and
    100 private ones.
    """
    length, chunks = PREFIX + PRIVATE, []
    for i in range(batch):
        own = SLOT_ORDER[PREFIX + i * length : PREFIX + (i + 1) * length]
        slots = np.concatenate([SLOT_ORDER[:PREFIX], own[PREFIX:]]) if shared else own
        chunks.append(Chunk(np.array([5 + i], np.int32), length - 1, slots))
    return chunks


def generic_runner(ours: Runner, model: str) -> Runner:
    """transformers' modules as they are, over the same pool."""
    generic = AutoModelForCausalLM.from_pretrained(model, dtype=ours.loaded.dtype).eval()
    generic.set_attn_implementation(CPU_KERNEL)
    loaded = ours.loaded
    facts = {
        name: getattr(loaded, name)
        for name in ("device", "dtype", "shape", "vocab_size", "context_length", "attention")
    }
    return Runner(LoadedModel(model=generic, eos_token_ids=(), exact=False, **facts), ours.pool)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    drawn = Table(title=title)
    for column in columns:
        drawn.add_column(column, justify="right")
    for row in rows:
        drawn.add_row(*row)
    Console().print(drawn)


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def bench_decode(ours: Runner, generic: Runner, rounds: int) -> None:
    rows = []
    for batch in BATCHES:
        shared, private = decode_chunks(batch, True), decode_chunks(batch, False)
        times = interleaved(
            {
                "ours": partial(ours.forward, shared),
                "private": partial(ours.forward, private),
                "generic": partial(generic.forward, shared),
            },
            rounds,
        )
        fast = times["ours"]
        gains = (f"{times[name] / fast:.2f}x" for name in ("private", "generic"))
        rows.append([str(batch), *map(ms, times.values()), *gains, f"{batch / fast:.0f}"])
    columns = [
        "batch",
        "ours",
        "not shared",
        "generic",
        "not shared/ours",
        "generic/ours",
        "tokens/s",
    ]
    table(f"One decode step in ms, {PREFIX} shared + {PRIVATE} private tokens", columns, rows)


def bench_prefill(ours: Runner, generic: Runner, rounds: int) -> None:
    rows = []
    for length in (256, *LENGTHS):
        ids = np.random.default_rng(1).integers(0, ours.loaded.vocab_size, length).astype(np.int32)
        chunks = [Chunk(ids, 0, SLOT_ORDER[:length])]
        times = interleaved(
            {"ours": partial(ours.forward, chunks), "generic": partial(generic.forward, chunks)},
            rounds,
        )
        rate = [f"{length / times[name]:.0f}" for name in times]
        rows.append([str(length), *rate, f"{times['generic'] / times['ours']:.2f}x"])
    table("Prefill in one step", ["tokens", "ours tokens/s", "generic tokens/s", "ratio"], rows)


def bench_attention(shape: KVShape, heads: int, rounds: int) -> None:
    pool = KVPool(shape, SLOTS, DEVICE)
    pool.k.normal_()
    pool.v.normal_()
    rows = []
    for length in LENGTHS:
        q = torch.randn(length, heads, shape.k_dim, dtype=shape.dtype)
        k, v = torch.randn(2, 1, shape.kv_heads, length, shape.k_dim, dtype=shape.dtype).unbind()
        plan = AttentionPlan.of([Chunk(np.zeros(length, np.int32), 0, SLOT_ORDER[:length])], pool)
        q4 = q.transpose(0, 1)[None].contiguous()
        times = interleaved(
            {
                "ours": partial(attend_cpu, q, 0, plan, LayerAttention(0.125)),
                "sdpa": partial(
                    F.scaled_dot_product_attention, q4, k, v, is_causal=True, enable_gqa=True
                ),
            },
            rounds,
        )
        rows.append(
            [
                str(length),
                ms(times["ours"]),
                ms(times["sdpa"]),
                f"{times['sdpa'] / times['ours']:.2f}x",
            ]
        )
    table(
        "Attention of one layer, prefill",
        ["tokens", "ours ms", "SDPA ms", "speed of SDPA reached"],
        rows,
    )
    bench_shared_attention(pool, heads, rounds)


def attend_all_layers(q: torch.Tensor, plan: AttentionPlan) -> None:
    """As a step does: what is read of a layer is no longer in the caches when it is read again."""
    for layer in range(plan.pool.shape.layers):
        attend_cpu(q, layer, plan, LayerAttention(0.125))


def bench_shared_attention(pool: KVPool, heads: int, rounds: int) -> None:
    rows = []
    for batch in BATCHES:
        q = torch.randn(batch, heads, pool.shape.k_dim, dtype=pool.shape.dtype)
        plans = [AttentionPlan.of(decode_chunks(batch, shared), pool) for shared in (True, False)]
        works: dict[str, Work] = {
            name: partial(attend_all_layers, q, plan)
            for name, plan in zip(("shared", "private"), plans, strict=True)
        }
        times = interleaved(works, rounds)
        rows.append(
            [str(batch), *map(ms, times.values()), f"{times['private'] / times['shared']:.2f}x"]
        )
    title = (
        f"Attention of all {pool.shape.layers} layers, decode, {PREFIX} shared + {PRIVATE} "
        "private tokens"
    )
    table(title, ["batch", "shared ms", "not shared ms", "gain"], rows)


def bench_attention_kernels(shape: KVShape, heads: int, rounds: int) -> None:
    """The kernel for float32, and those for bfloat16 at every level that this machine has."""
    kernels = {"float32": (torch.float32, "auto")}
    for each in levels.available():
        kernels[f"bfloat16, {each.name}"] = torch.bfloat16, each.name.lower()
    prefills: dict[str, Work] = {}
    decodes: dict[str, Work] = {}
    for name, (dtype, level) in kernels.items():
        pool = KVPool(replace(shape, dtype=dtype), SLOTS, DEVICE)
        pool.k.normal_()
        pool.v.normal_()
        chunk = Chunk(np.zeros(ONE_PREFILL, np.int32), 0, SLOT_ORDER[:ONE_PREFILL])
        prefills[name] = at_level(level, attention_of([chunk], heads, pool, 1))
        decodes[name] = at_level(
            level, attention_of(decode_chunks(16, True), heads, pool, shape.layers)
        )
    first, second = interleaved(prefills, rounds), interleaved(decodes, rounds)
    title = f"Attention: one layer of a prefill of {ONE_PREFILL} tokens, all layers of a decode"
    rows = [[name, ms(first[name]), ms(second[name])] for name in kernels]
    table(title, ["kernel", "prefill ms", "decode of 16, shared, ms"], rows)


def attention_of(chunks: list[Chunk], heads: int, pool: KVPool, layers: int) -> Work:
    """Attention of some layers of a step."""
    plan = AttentionPlan.of(chunks, pool)
    q = torch.randn(len(plan.positions), heads, pool.shape.k_dim).to(pool.shape.dtype)

    def attend() -> None:
        for layer in range(layers):
            attend_cpu(q, layer, plan, LayerAttention(0.125))

    return attend


def at_level(level: str, work: Work) -> Work:
    """`work` with at most these instructions."""

    def limited() -> None:
        levels.limit(level)
        work()
        levels.limit("auto")

    return limited


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of a step and of its attention.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--scattered", action="store_true")
    options = parser.parse_args()
    if options.scattered:
        np.random.default_rng(0).shuffle(SLOT_ORDER)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    model = options.model or str(embedded_model())
    loaded = load_model(model, DEVICE, getattr(torch, options.dtype))
    ours = Runner(loaded, KVPool(loaded.shape, SLOTS, DEVICE))
    generic = generic_runner(ours, model)
    config: Any = loaded.model.config
    bench_attention(loaded.shape, config.num_attention_heads, options.rounds)
    bench_attention_kernels(loaded.shape, config.num_attention_heads, options.rounds)
    bench_decode(ours, generic, options.rounds)
    bench_prefill(ours, generic, max(3, options.rounds // 4))


if __name__ == "__main__":
    main()

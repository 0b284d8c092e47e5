"""Loading a stored prefix from the disk against computing it; and a restart with a folder of many
runs.

    python benchmarks/bench_store.py [--tokens 1400] [--runs 10000] [--rounds 5]

The embedded model in float32. A load is what the engine does: find the prefix, read and verify its
files (from the page cache: they were just written), copy K and V into slots. Prefill is one step
after the other of 256 tokens. The restart is that of an engine whose model is loaded: it makes a
pool, a cache and the store, and answers a prompt behind a stored prefix.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from radixserve.cache.kvcache import KVCache
from radixserve.checkpoints.embedded import embedded_model
from radixserve.engine.core import EngineCore
from radixserve.engine.counters import GENERATED_TOKENS, PROMPT_TOKENS
from radixserve.engine.scheduler import Limits
from radixserve.engine.tiers import Tiers
from radixserve.model.load import load_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.prefix import Prefix
from radixserve.request import Request, Sampling
from radixserve.step import Chunk
from radixserve.store.folder.disk import Disk
from radixserve.store.folder.disk_store import DiskStore
from radixserve.tensors.copies import read_slots, write_slots
from radixserve.tensors.kv import KV, KVPool, KVShape
from radixserve.tiers.disk import DiskTier
from radixserve.tiers.pace import Pace

STEP = 256
CPU = torch.device("cpu")
SLOTS = 4096
NAMESPACE = "public"  # of a request without a tenant
WAIT_SECONDS = 0.001  # while the disk reads


class NoSync(Disk):
    """Fills a folder quickly; nothing is measured while it does."""

    def sync(self, path: Path) -> None:
        pass


def seconds(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        since = time.perf_counter()
        work()
        times.append(time.perf_counter() - since)
    return statistics.median(times)


def load_against_prefill(loaded: LoadedModel, num_tokens: int, rounds: int, folder: Path) -> None:
    pool = KVPool(loaded.shape, num_tokens, CPU)
    runner, slots = Runner(loaded, pool), np.arange(num_tokens, dtype=np.int32)
    ids = np.random.default_rng(0).integers(0, loaded.vocab_size, num_tokens).astype(np.int32)
    prefix = Prefix.of("", ids.tolist())

    def prefill() -> None:
        for start in range(0, num_tokens, STEP):
            stop = min(start + STEP, num_tokens)
            runner.forward([Chunk(ids[start:stop], start, slots[:stop])])

    prefill()
    store = DiskStore(folder, 1 << 30, "bench", loaded.shape)
    write = seconds(lambda: store.put(prefix, 0, *read_slots(pool, slots)), 1)

    def load() -> None:
        kv = store.load(prefix, 0, num_tokens)
        assert kv is not None, "it was stored a moment ago"
        write_slots(pool, slots, kv)

    load()
    computed, read = seconds(prefill, rounds), seconds(load, rounds)
    store.close()
    print("| tokens | prefill, ms | load, ms | prefill / load | write, ms |")
    print("|---|---|---|---|---|")
    print(
        f"| {num_tokens:,} | {computed * 1e3:.0f} | {read * 1e3:.1f} | "
        f"**{computed / read:.1f}x** | {write * 1e3:.0f} |"
    )


def restart(loaded: LoadedModel, num_runs: int, num_tokens: int, folder: Path) -> None:
    """From a loaded model to the first token behind a stored prefix, in a folder of many runs."""
    draw = np.random.default_rng(1)
    prompt = draw.integers(0, loaded.vocab_size, num_tokens + 1).tolist()
    store = DiskStore(folder, 4 << 30, "bench", loaded.shape, disk=NoSync())
    for i in track(range(num_runs - 1), "writing runs", console=Console(stderr=True)):
        store.put(Prefix.of(NAMESPACE, [i, 1]), 0, *_zeros(loaded.shape, 2))
    store.put(Prefix.of(NAMESPACE, prompt[:-1]), 0, *_zeros(loaded.shape, num_tokens))
    stored = store.stats().runs
    store.close()
    since = time.perf_counter()
    cache, pool = KVCache(SLOTS), KVPool(loaded.shape, SLOTS, CPU)
    store = DiskStore(folder, 4 << 30, "bench", loaded.shape)
    opened = time.perf_counter() - since
    tiers = Tiers(cache, pool, [DiskTier(store, cache, pool, Pace())])
    core = EngineCore(
        Runner(loaded, pool), cache, Limits(max_running=16, max_step_tokens=STEP), tiers=tiers
    )
    core.submit(
        Request(
            id="warm",
            prompt_ids=prompt,
            namespace=NAMESPACE,
            sampling=Sampling(max_tokens=1, seed=0, temperature=0.0),
        ),
        [],
    )
    while not core.stats().value(GENERATED_TOKENS):
        if not core.step():
            time.sleep(WAIT_SECONDS)
    first = time.perf_counter() - since
    loads = core.stats().value(PROMPT_TOKENS, "disk")
    tiers.close(10.0)
    assert loads, "the stored prefix was not used"
    print(
        "\n| runs in the folder | opened after, s | first token after, s | tokens of its "
        "prompt from the disk |"
    )
    print("|---|---|---|---|")
    print(f"| {stored:,} | {opened:.3f} | **{first:.3f}** | {loads:,} of {len(prompt):,} |")


def _zeros(shape: KVShape, num_tokens: int) -> KV:
    sizes = (shape.layers, num_tokens, shape.kv_heads)
    return torch.zeros(*sizes, shape.k_dim), torch.zeros(*sizes, shape.v_dim)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1400)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_grad_enabled(False)
    loaded = load_model(str(embedded_model()), CPU, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        load_against_prefill(loaded, chosen.tokens, chosen.rounds, Path(folder) / "prefix")
        restart(loaded, chosen.runs, chosen.tokens, Path(folder) / "many")


if __name__ == "__main__":
    main()

"""Loading a stored prefix from the disk against computing it; and opening a folder of many runs.

    python benchmarks/bench_store.py [--tokens 1400] [--runs 10000] [--rounds 5]

The embedded model in float32. A load is what the engine does: find the prefix, read and verify its files (from the page
cache: they were just written), copy K and V into slots. Prefill is one step after the other of 256 tokens.
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

from radixserve.cache.pool import KVPool, KVShape
from radixserve.model.embedded import embedded_model
from radixserve.model.loader import load_model
from radixserve.model.runner import Runner
from radixserve.step import Chunk
from radixserve.store.disk import Disk
from radixserve.store.disk_store import DiskStore, pack
from radixserve.tiers.copies import read_slots, write_slots

STEP = 256
CPU = torch.device("cpu")
SMALL = KVShape(layers=1, kv_heads=1, k_dim=1, v_dim=1, dtype=torch.float32)


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


def load_against_prefill(num_tokens: int, rounds: int, folder: Path) -> None:
    loaded = load_model(str(embedded_model()), CPU, torch.float32)
    pool = KVPool(loaded.shape, num_tokens, CPU)
    runner, slots = Runner(loaded, pool), np.arange(num_tokens, dtype=np.int32)
    ids = np.random.default_rng(0).integers(0, loaded.vocab_size, num_tokens).astype(np.int32)
    tokens = pack(ids.tolist())

    def prefill() -> None:
        for start in range(0, num_tokens, STEP):
            stop = min(start + STEP, num_tokens)
            runner.forward([Chunk(ids[start:stop], start, slots[:stop])])

    prefill()
    store = DiskStore(folder, 1 << 30, "bench", loaded.shape)
    write = seconds(lambda: store.put("", tokens, 0, *read_slots(pool, slots)), 1)

    def load() -> None:
        kv = store.load("", tokens, 0, num_tokens)
        assert kv is not None, "it was stored a moment ago"
        write_slots(pool, slots, kv)

    load()
    computed, read = seconds(prefill, rounds), seconds(load, rounds)
    store.close()
    print("| tokens | prefill, ms | load, ms | prefill / load | write, ms |")
    print("|---|---|---|---|---|")
    print(
        f"| {num_tokens:,} | {computed * 1e3:.0f} | {read * 1e3:.1f} | **{computed / read:.1f}x** | {write * 1e3:.0f} |"
    )


def open_many(num_runs: int, folder: Path) -> None:
    store = DiskStore(folder, 1 << 30, "bench", SMALL, disk=NoSync())
    one = torch.zeros(1, 4, 1, 1)
    for i in range(num_runs):
        store.put("", pack([i, 1, 2, 3]), 0, one, one)
    store.close()
    since = time.perf_counter()
    store = DiskStore(folder, 1 << 30, "bench", SMALL)
    opened = time.perf_counter() - since
    assert store.load("", pack([num_runs // 2, 1, 2, 3]), 0, 4) is not None, "a run is lost"
    found = time.perf_counter() - since
    store.close()
    print("\n| runs | opened after, s | first prefix loaded after, s |")
    print("|---|---|---|")
    print(f"| {num_runs:,} | {opened:.3f} | {found:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1400)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        load_against_prefill(chosen.tokens, chosen.rounds, Path(folder) / "prefix")
        open_many(chosen.runs, Path(folder) / "many")


if __name__ == "__main__":
    main()

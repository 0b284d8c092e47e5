"""What writing behind costs: the same requests with a disk store and without one, in turns, in one
process.

    GOMP_SPINCOUNT=5000 python benchmarks/bench_write_behind.py [--pairs 9]
        [--folder DIR] [--model FOLDER_OR_NAME]

Two engines over one model. A pair is the same new requests, a round after the other without a
pause, through one engine and then through the other, in turns of who is first. Two kinds of
requests, a row each:

    shared    rounds of eight chats: a new prefix of 1,400 tokens, 30 of their own, 32 generated
    random    rounds of eight prompts of 110 to 560 random tokens, 32 generated: every token
              computed is written

Time ends with the last token. What is still to be written then is waited for before the other
engine's turn; the table says how long that took, how much was written and how much was left out (a
queue that is full, slots that are needed). Prints the median of the pairs' ratios of throughput
with its quartiles.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from bench_no_reuse import DEVICE, GENERATED, LIMITS, SLOTS, requests

from radixserve.cache.kvcache import KVCache
from radixserve.checkpoints.embedded import embedded_model
from radixserve.engine.core import EngineCore
from radixserve.engine.tiers import Tiers
from radixserve.model.load import load_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.request import Request, Sampling
from radixserve.store.folder.counters import SKIPPED
from radixserve.store.folder.disk_store import DiskStore
from radixserve.tensors.kv import KVPool
from radixserve.tiers.contract import Tier
from radixserve.tiers.counters import TIER_TOKENS
from radixserve.tiers.disk import DiskTier
from radixserve.tiers.pace import Pace

ROUNDS, CHATS = 3, 8
PREFIX, OWN = 1400, 30
BUDGET = 4 << 30
WARM_UP = 1  # pairs

Round = list[Request]


def engine(loaded: LoadedModel, folder: Path | None) -> EngineCore:
    cache, pool = KVCache(SLOTS), KVPool(loaded.shape, SLOTS, DEVICE)
    below: list[Tier] = []
    if folder:
        store = DiskStore(folder, BUDGET, "bench", loaded.shape)
        below.append(DiskTier(store, cache, pool, Pace()))
    return EngineCore(Runner(loaded, pool), cache, LIMITS, tiers=Tiers(cache, pool, below))


def chats(draw: random.Random, vocab: int) -> Round:
    prefix = [draw.randrange(vocab) for _ in range(PREFIX)]
    sampling = Sampling(max_tokens=GENERATED, seed=0, temperature=0.0)
    own = [[draw.randrange(vocab) for _ in range(OWN)] for _ in range(CHATS)]
    return [
        Request(id=str(i), prompt_ids=prefix + each, sampling=sampling)
        for i, each in enumerate(own)
    ]


def seconds(core: EngineCore, rounds: list[Round]) -> float:
    """From the first request to the last token."""
    started = time.perf_counter()
    for wanted in rounds:
        for request in wanted:
            core.submit(request, [])
        while core.has_work:
            core.step()
    return time.perf_counter() - started


def drain(core: EngineCore) -> float:
    """Seconds until nothing is to be written any more."""
    started = time.perf_counter()
    while core.tiers.patience is None:
        core.tiers.settle()
        time.sleep(0.005)
    return time.perf_counter() - started


def measure(kind: str, loaded: LoadedModel, pairs: int, folder: Path) -> str:
    """One Markdown row."""
    on, off, draw = engine(loaded, folder), engine(loaded, None), random.Random(6)
    make, found, drains = (chats if kind == "shared" else requests), [], []
    for number in range(WARM_UP + pairs):
        rounds = [make(draw, loaded.vocab_size) for _ in range(ROUNDS)]
        times = {}
        for core in (on, off) if number % 2 else (off, on):
            times[id(core)] = seconds(core, rounds)
            drains += [drain(core)] if core is on else []
        found.append((times[id(on)], times[id(off)]))
    stats = on.stats()
    stored = stats.value(TIER_TOKENS, "disk", "down")
    on.tiers.close(60.0)
    low, middle, high = statistics.quantiles((off / on for on, off in found[WARM_UP:]), n=4)
    walls = [statistics.median(column) for column in zip(*found[WARM_UP:], strict=True)]
    return (
        f"| {kind} | {pairs} | {walls[0]:.2f} | {walls[1]:.2f} | **{middle:.3f}** | "
        f"{low:.3f} to {high:.3f} "
        f"| {statistics.median(drains):.2f} | {stored:,} | "
        f"{stats.value(SKIPPED)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=9, help="at least 2")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write; by default a temporary folder"
    )
    parser.add_argument("--model", default=None)
    options = parser.parse_args()
    loaded = load_model(options.model or str(embedded_model()), DEVICE, torch.float32)
    print(
        "| requests | pairs | writing, s | not, s | throughput on / off | quartiles | still "
        "to write after, s | ",
        end="",
    )
    print("tokens written | writes left out |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in ("shared", "random"):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(measure(kind, loaded, options.pairs, Path(folder)), flush=True)


if __name__ == "__main__":
    main()

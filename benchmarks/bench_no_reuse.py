"""What the cache costs where it cannot help: prompts that share nothing, cache on beside cache off,
in one process.

    python benchmarks/bench_no_reuse.py [--pairs 15] [--model FOLDER_OR_NAME]

Two engines over one model, each with a K/V pool of its own. A pair is eight new random requests,
all at once, through one engine and then through the other, in turns of who is first; the shape is
that of loadtest/workloads/random.toml: 100 to 500 words, 32 greedy tokens. The engines live on from
pair to pair, so that the tree of the one with a cache is full after two and it evicts for every
request. Prints the median of the pairs' ratios with its quartiles.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch

from radixserve.cache.counters import EVICTED_TOKENS
from radixserve.cache.kvcache import KVCache
from radixserve.checkpoints.embedded import embedded_model
from radixserve.engine.core import EngineCore
from radixserve.engine.counters import PROMPT_TOKENS
from radixserve.engine.scheduler import Limits
from radixserve.model.load import load_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.request import Request, Sampling
from radixserve.tensors.kv import KVPool

REQUESTS, GENERATED = 8, 32
PROMPT = (110, 560)  # tokens of 100 to 500 words
SLOTS = 4864  # room for any eight requests, not for sixteen
WARM_UP = 2  # pairs
LIMITS = Limits(max_running=16, max_step_tokens=256)
DEVICE = torch.device("cpu")


def engine(loaded: LoadedModel, *, cache: bool) -> EngineCore:
    return EngineCore(
        Runner(loaded, KVPool(loaded.shape, SLOTS, DEVICE)), KVCache(SLOTS, enabled=cache), LIMITS
    )


def requests(draw: random.Random, vocab: int) -> list[Request]:
    sampling = Sampling(max_tokens=GENERATED, seed=0, temperature=0.0)
    prompts = [
        [draw.randrange(vocab) for _ in range(draw.randint(*PROMPT))] for _ in range(REQUESTS)
    ]
    return [
        Request(id=str(i), prompt_ids=prompt, sampling=sampling) for i, prompt in enumerate(prompts)
    ]


def seconds(core: EngineCore, wanted: list[Request]) -> float:
    """How long the engine takes from the first request to the last token."""
    started = time.perf_counter()
    for request in wanted:
        core.submit(request, [])
    while core.has_work:
        core.step()
    return time.perf_counter() - started


def measure(on: EngineCore, off: EngineCore, pairs: int, vocab: int) -> list[tuple[float, float]]:
    """Seconds with the cache and without, pair by pair, without the first ones."""
    draw, found = random.Random(6), []
    for number in range(WARM_UP + pairs):
        wanted = requests(draw, vocab)
        order = (on, off) if number % 2 else (off, on)
        times = {id(core): seconds(core, wanted) for core in order}
        found.append((times[id(on)], times[id(off)]))
    return found[WARM_UP:]


def report(pairs: list[tuple[float, float]], on: EngineCore) -> None:
    """One Markdown row."""
    stats = on.stats()
    low, middle, high = statistics.quantiles((off / on for on, off in pairs), n=4)
    walls = [statistics.median(column) for column in zip(*pairs, strict=True)]
    share = stats.value(PROMPT_TOKENS, "device") / stats.total(PROMPT_TOKENS)
    print(
        "| pairs | cache, s | no cache, s | throughput on / off | quartiles | hit share | "
        "tokens evicted |"
    )
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {len(pairs)} | {walls[0]:.2f} | {walls[1]:.2f} | **{middle:.4f}** | {low:.4f} "
        f"to {high:.4f} "
        f"| {share:.4f} | {stats.value(EVICTED_TOKENS):,} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15, help="at least 2")
    parser.add_argument("--model", default=None)
    options = parser.parse_args()
    loaded = load_model(options.model or str(embedded_model()), DEVICE, torch.float32)
    on, off = engine(loaded, cache=True), engine(loaded, cache=False)
    report(measure(on, off, options.pairs, loaded.vocab_size), on)


if __name__ == "__main__":
    main()

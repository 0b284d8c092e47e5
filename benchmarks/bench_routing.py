"""What a gateway spends on choosing a server: an index of a million blocks, 8 and 256 servers.

    python benchmarks/bench_routing.py

Each prompt has 256 blocks (4,096 tokens in blocks of 16), of which a half is cached on average.
"""

from __future__ import annotations

import random
import statistics
import time
import tracemalloc

from radixserve.cluster.index import PrefixIndex
from radixserve.cluster.policy import Asked, LeastCost

BLOCKS = 1_000_000
PROMPT = 256
ROUNDS = 2000


def filled(servers: int) -> tuple[PrefixIndex, list[list[int]]]:
    """An index that is full, and the prompts in it."""
    index, prompts = PrefixIndex(BLOCKS), []
    while len(index) < BLOCKS - PROMPT:
        keys = [random.getrandbits(63) for _ in range(PROMPT)]
        prompts.append(keys)
        for server in random.sample(range(servers), 2):
            index.store(server, keys[: random.randint(1, PROMPT)])
    return index, prompts


def measure(servers: int) -> str:
    """The times of one choice."""
    tracemalloc.start()
    index, prompts = filled(servers)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    waits, policy = [random.random() for _ in range(servers)], LeastCost()
    looks, choices = [], []
    for _ in range(ROUNDS):
        keys = random.choice(prompts)
        began = time.perf_counter()
        depths = index.depths(keys)
        looked = time.perf_counter()
        asked = Asked(keys, 1.0, {server: each / PROMPT for server, each in depths.items()})
        policy.choose(asked, waits)
        choices.append(time.perf_counter() - looked)
        looks.append(looked - began)
    look, choice = (statistics.median(each) * 1e6 for each in (looks, choices))
    return (
        f"{servers} servers, {len(index):,} blocks (with prompts {size / len(index):.0f} bytes "
        f"each): look-up {look:.0f} us, choice {choice:.0f} us"
    )


def main() -> None:
    """Both numbers of servers."""
    random.seed(7)
    for servers in (8, 256):
        print(measure(servers), flush=True)


if __name__ == "__main__":
    main()

"""Times the prefix cache alone: match, lease and release, publish, evict, in trees of 1,000 to
100,000 nodes.

The trees are grown through the public interface by something like chat traffic: per 1,000 nodes one
system prompt of 1,330 tokens and a thousand short turns, each going on from a random earlier turn
below the same system prompt; ten tokens per node in all. Every prompt asked for is 1,400 tokens
long and cached. `comb` is the worst shape there is: 1,400 edges of one token, a branch at each.

    python benchmarks/bench_tree.py [--tries 2000] [--nodes 1000 10000 100000]
"""

from __future__ import annotations

import argparse
import gc
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter_ns

from radixserve.cache.kvcache import KVCache
from radixserve.prefix import Prefix, pack

SYSTEM_TOKENS, PROMPT_TOKENS, TOKENS_PER_NODE, NODES_PER_SYSTEM = 1330, 1400, 10, 1000
VOCABULARY = 49152
NAMESPACE = "public"
DONE = b""


@dataclass
class Traffic:
    """A cache, and what to send it."""

    cache: KVCache
    rng: random.Random
    paths: list[list[tuple[bytes, ...]]] = field(
        default_factory=list
    )  # by system prompt: the turns up to each turn
    turn_tokens: tuple[int, int] = (1, 16)
    is_steady: bool = True  # what is evicted is replaced by new turns

    def new_tokens(self, num_tokens: int) -> bytes:
        return pack(self.rng.randrange(VOCABULARY) for _ in range(num_tokens))

    def serve(self, tokens: bytes) -> None:
        """One request: lease, compute (not here), publish, release."""
        prefix = Prefix(NAMESPACE, tokens)
        lease = self.cache.lease(prefix, prefix.num_tokens)
        assert lease is not None
        with lease:
            lease.publish(prefix)

    def add_turns(self) -> None:
        """Two continuations of a random earlier turn, as users who share a conversation's beginning
        send them.
        """
        paths = self.rng.choice(self.paths)
        earlier = self.rng.choice(paths)
        for _ in range(2):
            path = (*earlier, self.new_tokens(self.rng.randint(*self.turn_tokens)))
            self.serve(b"".join(path))
            paths.append(path)

    def prompts(self, count: int) -> Iterator[bytes]:
        """Prompts of 1,400 tokens that are cached whole, each in fresh memory, as the scheduler
        packs them.
        """
        paths = [
            path
            for paths in self.paths
            for path in paths
            if sum(map(len, path)) >= 4 * PROMPT_TOKENS
        ]
        self.rng.shuffle(paths)
        cached = [path for path in paths[: 10 * count] if self.is_cached(path)]
        for path in self.rng.choices(cached, k=count):
            yield b"".join(path)[: 4 * PROMPT_TOKENS]

    def is_cached(self, path: tuple[bytes, ...]) -> bool:
        prefix = Prefix(NAMESPACE, b"".join(path))
        return self.cache.match(prefix) == prefix.num_tokens


def grow_chat_tree(num_nodes: int) -> Traffic:
    cache = KVCache(num_nodes * TOKENS_PER_NODE + 100_000)
    traffic = Traffic(cache, random.Random(num_nodes))
    for _ in range(num_nodes // NODES_PER_SYSTEM):
        system = traffic.new_tokens(SYSTEM_TOKENS)
        traffic.paths.append([(system,)])
        traffic.serve(system)
    while cache.stats().nodes < num_nodes:
        traffic.add_turns()
    return traffic


def grow_comb() -> Traffic:
    """A path of 1,400 tokens, and a request that leaves it after each of them."""
    traffic = Traffic(KVCache(100_000), random.Random(0), is_steady=False)
    path = traffic.new_tokens(PROMPT_TOKENS)
    traffic.serve(path)
    for depth in range(1, PROMPT_TOKENS):
        traffic.serve(path[: 4 * depth] + pack([VOCABULARY + depth]))
    traffic.serve(path)
    traffic.paths.append([(path,)])
    return traffic


def times(prepare: Iterator[Callable[[], object]], tries: int) -> list[float]:
    """Microseconds of each prepared call; preparing the next one is not timed."""
    taken = []
    for call, _ in zip(prepare, range(tries), strict=False):
        began = perf_counter_ns()
        call()
        taken.append((perf_counter_ns() - began) / 1000)
    return sorted(taken)


def matches(traffic: Traffic, tries: int) -> Iterator[Callable[[], object]]:
    for prompt in traffic.prompts(tries):
        yield partial(traffic.cache.match, Prefix(NAMESPACE, prompt))


def leases(traffic: Traffic, tries: int) -> Iterator[Callable[[], object]]:
    def lease_and_release(prefix: Prefix) -> None:
        lease = traffic.cache.lease(prefix, PROMPT_TOKENS + 64)
        assert lease is not None
        lease.release()

    for prompt in traffic.prompts(tries):
        yield partial(lease_and_release, Prefix(NAMESPACE, prompt))


def publishes(traffic: Traffic, tries: int) -> Iterator[Callable[[], object]]:
    for prompt in traffic.prompts(tries):
        prefix = Prefix(NAMESPACE, prompt + traffic.new_tokens(64))
        lease = traffic.cache.lease(prefix, PROMPT_TOKENS + 64)
        assert lease is not None
        with lease:
            yield partial(lease.publish, prefix)


def evictions(traffic: Traffic, _: int) -> Iterator[Callable[[], object]]:
    """Evict 64 tokens at a time; between two times, new turns take the place of those that went."""
    cached = traffic.cache.stats().cached
    while True:
        yield lambda: traffic.cache.slots.evict(64)
        while traffic.is_steady and traffic.cache.stats().cached < cached:
            traffic.add_turns()


def report(name: str, traffic: Traffic, tries: int) -> None:
    stats = traffic.cache.stats()
    depths = []
    for prompt in traffic.prompts(200):
        point = traffic.cache.tree.walk(
            traffic.cache.tree.root(NAMESPACE), 0, Prefix(NAMESPACE, prompt)
        )
        node, depth = point.node, 0
        while node.parent is not None:
            node, depth = node.parent, depth + 1
        depths.append(depth)
    row = f"{name:>14} {stats.nodes:>8,} {stats.cached:>10,} {sum(depths) / len(depths):>8.1f}"
    for measure in (matches, leases, evictions, publishes):
        taken = times(measure(traffic, tries), tries)
        row += f" {taken[len(taken) // 2]:>8.1f} {taken[len(taken) * 99 // 100]:>8.1f}"
    print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=2000)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    options = parser.parse_args()
    print(
        "Times in microseconds, median and 99th percentile. A prompt has 1,400 tokens; "
        "depth is its number of edges."
    )
    columns = ("match prompt", "lease+release", "evict 64", "publish 64")
    print(" " * 43 + "".join(f" {column:>17}" for column in columns))
    print(
        f"{'tree':>14} {'nodes':>8} {'tokens':>10} {'depth':>8}" + f" {'median':>8} {'p99':>8}" * 4
    )
    for num_nodes in options.nodes:
        report("chat", grow_chat_tree(num_nodes), options.tries)
        gc.collect()
    report("comb", grow_comb(), 20)


if __name__ == "__main__":
    main()

"""Replays a trace through a `KVCache` whose tokens are the blocks of the trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from radixserve.cache.ghosts import CHUNK
from radixserve.cache.kvcache import KVCache
from radixserve.cache.policies.policy import Scale
from radixserve.cache.policies.table import POLICIES
from radixserve.loadtest.trace import Line
from radixserve.prefix import Prefix

EVEN_DEPTH = 8192  # tokens; about that of a model of half a billion parameters


@dataclass(frozen=True, slots=True)
class Traffic:
    """Prompts in the order of their arrival; their tokens are numbers of blocks, from 0 on."""

    prompts: tuple[Prefix, ...]
    block_tokens: int
    num_blocks: int  # of all prompts together
    num_distinct: int

    @classmethod
    def of(cls, lines: Iterable[Line]) -> Traffic:
        """The traffic that a trace recorded. The last block of a prompt may be a part of one.

        Raises:
            ValueError: blocks have different sizes, or there are none.
        """
        numbers: dict[int, int] = {}
        prompts, sizes = [], set()
        for line in lines:
            ids = [numbers.setdefault(each, len(numbers)) for each in line.hash_ids]
            prompts.append(Prefix.of("", ids))
            sizes.add(line.block_tokens)
        if len(sizes) != 1:
            raise ValueError("a trace needs requests, all in blocks of one size")
        num_blocks = sum(prompt.num_tokens for prompt in prompts)
        return cls(tuple(prompts), sizes.pop(), num_blocks, len(numbers))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Which share of all blocks hit, and which share of the computing that saved, in a model in
    which a token at `EVEN_DEPTH` costs twice as much as the first, because of its attention.
    """

    hits: float
    saved: float


def replay(traffic: Traffic, policy: str, budget: int, step: Callable[[], None]) -> Outcome:
    """Serve the prompts one after the other with a cache of `budget` blocks; calls `step` after
    each. A prompt that is longer is cut to that length. O(blocks), times log leaves.
    """
    budget = min(budget, traffic.num_blocks)  # more would never be used
    cache = make_cache(traffic.block_tokens, policy, budget)
    lengths = []
    for prompt in traffic.prompts:
        lengths.append(serve(cache, prompt.first(budget)))
        step()
    return outcome(traffic, lengths)


def make_cache(block_tokens: int, policy: str, budget: int) -> KVCache:
    """A cache of `budget` blocks."""
    even_depth = max(Scale(budget).even_depth // block_tokens, 1)
    scale = Scale(budget, chunk=max(CHUNK // block_tokens, 1), even_depth=even_depth)
    return KVCache(budget, policy=POLICIES[policy](scale), hindsight=None)


def serve(cache: KVCache, prompt: Prefix) -> int:
    """How much of `prompt` is cached; all of it is afterwards."""
    lease = cache.receive(prompt)
    assert lease is not None, "nothing else is leased"
    with lease:
        lease.publish(prompt)
        return lease.num_cached


def outcome(traffic: Traffic, hits: Sequence[int]) -> Outcome:
    """The outcome, given how many of the first blocks of each prompt hit."""
    even_depth = EVEN_DEPTH / traffic.block_tokens
    whole = sum(_computing(prompt.num_tokens, even_depth) for prompt in traffic.prompts)
    saved = sum(_computing(each, even_depth) for each in hits)
    return Outcome(sum(hits) / traffic.num_blocks, saved / whole)


def _computing(num_blocks: int, even_depth: float) -> float:
    """What the first blocks of a prompt cost, in blocks without attention."""
    return num_blocks * (1 + num_blocks / (2 * even_depth))

"""Hindsight against caches that really have the larger budgets."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.cache.counters import GHOST_HIT_TOKENS, RECOMPUTED_TOKENS
from radixserve.cache.hindsight import Hindsight
from radixserve.cache.kvcache import KVCache
from radixserve.cache.policies.ranked import least_recently_used
from radixserve.prefix import Prefix

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=80)


def serve(cache: KVCache, tokens: list[int]) -> int:
    """How many tokens hit; the prompt is cached afterwards."""
    prompt = Prefix.of("public", tokens)
    lease = cache.receive(prompt)
    assert lease is not None
    with lease:
        lease.publish(prompt)
        return lease.num_cached


def seen(num_slots: int, chunk: int) -> tuple[KVCache, Hindsight]:
    hindsight = Hindsight(least_recently_used(), num_slots, chunk)
    return KVCache(num_slots, policy=hindsight), hindsight


@settings(deadline=None)
@given(prompts=PROMPTS)
def test_ghost_hits_are_the_hits_that_larger_caches_have_more(prompts: list[list[int]]) -> None:
    cache, hindsight = seen(8, 1)
    larger = {"1.5x": KVCache(12), "2x": KVCache(16), "4x": KVCache(32)}
    more = Counter[str]()
    for prompt in prompts:
        hits = serve(cache, prompt)
        for name, other in larger.items():
            more[name] += serve(other, prompt) - hits
        cache.check()
        assert hindsight.ghost_hits == {name: more[name] for name in larger}


@settings(deadline=None)
@given(prompts=PROMPTS, unasked=st.sets(st.integers(0, 79)))
def test_misses_count_only_what_was_asked_for_in_vain(
    prompts: list[list[int]], unasked: set[int]
) -> None:
    """What comes without a question, as what the device evicts, is no miss."""
    hindsight = Hindsight(least_recently_used(), 8, 1, "misses")
    cache, larger, missed = KVCache(8, policy=hindsight), KVCache(16), 0
    for number, tokens in enumerate(prompts):
        prompt = Prefix.of("public", tokens)
        if number not in unasked:
            missed += larger.match(prompt) - cache.match(prompt)
            hindsight.missed(prompt, cache.match(prompt))
        serve(cache, tokens)
        serve(larger, tokens)
        cache.check()
    assert hindsight.ghost_hits["2x"] == missed


@settings(deadline=None)
@given(prompts=PROMPTS)
def test_regret_is_what_was_evicted_and_then_computed_again(prompts: list[list[int]]) -> None:
    """With so few tokens all that went is remembered, so an endless cache says the same."""
    cache, hindsight = seen(8, 1)
    endless, regret = KVCache(10_000), 0
    for prompt in prompts[:4]:
        regret += serve(endless, prompt) - serve(cache, prompt)
    assert hindsight.recomputed_tokens == regret


def test_a_chunk_that_was_half_there_counts_half() -> None:
    cache, hindsight = seen(16, 4)
    serve(cache, [1, 2, 3, 4, 5, 6, 7, 8])
    cache.slots.evict(2)
    serve(cache, [1, 2, 3, 4, 5, 6, 7, 8])
    assert hindsight.ghost_hits == {"1.5x": 2, "2x": 2, "4x": 2}


def test_what_it_counts_is_declared() -> None:
    _, hindsight = seen(8, 1)
    numbers = hindsight.numbers()
    assert numbers == {
        RECOMPUTED_TOKENS.key(): 0,
        **{GHOST_HIT_TOKENS.key(name): 0 for name in ("1.5x", "2x", "4x")},
    }

from __future__ import annotations

import subprocess
import sys

import pytest

from radixserve.cache.kvcache import CacheStats, KVCache, Lease
from radixserve.prefix import Prefix

PROMPT = [11, 12, 13, 14, 15, 16]


def prefix(tokens: list[int]) -> Prefix:
    return Prefix.of("public", tokens)


def take(cache: KVCache, tokens: list[int], num_slots: int | None = None, **options: bool) -> Lease:
    lease = cache.lease(prefix(tokens), len(tokens) if num_slots is None else num_slots, **options)
    assert lease is not None
    return lease


def serve(cache: KVCache, tokens: list[int]) -> None:
    with take(cache, tokens) as lease:
        lease.publish(prefix(tokens))
    cache.check()


def test_a_prompt_seen_before_is_cached_but_for_its_last_token() -> None:
    cache = KVCache(20)
    serve(cache, PROMPT)
    assert cache.match(prefix(PROMPT)) == 6
    with take(cache, PROMPT, 8) as lease:
        assert lease.num_cached == 5
        assert lease.slots.tolist() == [0, 1, 2, 3, 4, 6, 7, 8]


def test_a_partial_overlap_frees_the_duplicate_slots() -> None:
    cache = KVCache(20)
    first, second = take(cache, PROMPT), take(cache, [*PROMPT[:4], 99])
    assert (first.num_cached, second.num_cached) == (0, 0)
    assert second.slots.tolist() == [6, 7, 8, 9, 10]
    first.publish(prefix(PROMPT))
    second.publish(prefix([*PROMPT[:4], 99]))
    assert second.slots.tolist() == [0, 1, 2, 3, 10]
    assert cache.slots.allocator.free_runs() == [(6, 4), (11, 9)]
    cache.check()


def test_chunks_become_visible_as_they_are_published() -> None:
    cache = KVCache(20)
    with take(cache, PROMPT) as lease:
        assert cache.match(prefix(PROMPT)) == 0
        lease.publish(prefix(PROMPT[:2]))
        assert cache.match(prefix(PROMPT)) == 2
        lease.publish(prefix(PROMPT[:5]))
        assert cache.match(prefix(PROMPT)) == 5
        assert cache.stats().nodes == 1


def test_what_was_not_published_is_gone_after_release() -> None:
    cache = KVCache(20)
    take(cache, PROMPT).release()
    assert cache.match(prefix(PROMPT)) == 0
    assert cache.stats().free == 20


def test_a_lease_without_room_is_refused_and_leaves_no_trace() -> None:
    cache = KVCache(8)
    serve(cache, PROMPT)
    holder = take(cache, [1, 2])
    before = cache.stats()
    assert cache.lease(Prefix.of("other", [1, 2, 3]), 7) is None
    assert cache.lease(prefix([*PROMPT[:3], 9]), 7) is None
    assert cache.stats() == before
    assert list(cache.tree.roots) == ["public"]
    holder.release()
    assert take(cache, [*PROMPT[:3], 9], 8).num_cached == 3


def test_hold_takes_all_that_is_cached_and_receive_slots_for_the_rest() -> None:
    cache = KVCache(8)
    serve(cache, PROMPT)
    with cache.hold(prefix(PROMPT)) as held:
        assert held.slots.tolist() == [0, 1, 2, 3, 4, 5]
        assert cache.receive(prefix([1, 2, 3])) is None, "what is held is not evicted"
    with cache.hold(prefix([*PROMPT[:2], 9])) as held:
        assert held.slots.tolist() == [0, 1]
    received = cache.receive(prefix([*PROMPT, 17]))
    assert received is not None
    with received:
        assert (received.num_cached, received.slots.tolist()) == (6, [0, 1, 2, 3, 4, 5, 6])
    with cache.hold(Prefix.of("other", PROMPT)) as held:
        assert len(held.slots) == 0
    assert list(cache.tree.roots) == ["public"]
    cache.check()


def test_growing_evicts_exactly_what_is_short() -> None:
    cache = KVCache(8)
    serve(cache, PROMPT)
    with take(cache, [1, 2]) as lease:
        assert lease.grow(4)
        assert cache.stats() == CacheStats(
            num_slots=8,
            free=0,
            cached=4,
            pinned=0,
            private=4,
            leases=1,
            nodes=1,
            evicted_tokens_total=2,
        )
        assert lease.slots.tolist() == [6, 7, 4, 5]
        assert not lease.grow(9)
        assert len(lease.slots) == 4
        cache.check()


def test_reading_can_be_switched_off_for_one_lease_whose_tokens_then_share_the_slots_again() -> (
    None
):
    cache = KVCache(20)
    serve(cache, PROMPT)
    with take(cache, PROMPT, read=False) as lease:
        assert (lease.num_cached, lease.slots.tolist()) == (0, [6, 7, 8, 9, 10, 11])
        lease.publish(prefix(PROMPT))
        assert lease.slots.tolist() == [0, 1, 2, 3, 4, 5]
    assert cache.stats().cached == 6


def test_a_cache_that_is_off_hands_out_slots_and_finds_nothing() -> None:
    cache = KVCache(20, enabled=False)
    for _ in range(2):
        with take(cache, PROMPT) as lease:
            lease.publish(prefix(PROMPT))
            assert (lease.num_cached, cache.stats().cached, cache.stats().private) == (0, 0, 6)
    assert cache.match(prefix(PROMPT)) == 0
    assert cache.stats().free == 20


def test_a_released_lease_does_nothing_any_more() -> None:
    cache = KVCache(20)
    lease = take(cache, PROMPT)
    lease.release()
    lease.release()
    assert len(lease.slots) == 0
    with pytest.raises(AssertionError, match="released"):
        lease.grow(1)
    with pytest.raises(AssertionError, match="released"):
        lease.publish(prefix([]))


def test_publishing_beyond_the_slots_or_backwards_is_a_bug() -> None:
    lease = take(KVCache(20), PROMPT)
    lease.publish(prefix(PROMPT[:3]))
    for tokens in (PROMPT[:2], [*PROMPT, 17]):
        with pytest.raises(AssertionError, match="publish goes forward"):
            lease.publish(prefix(tokens))


def test_growing_token_by_token_keeps_one_node_and_the_table() -> None:
    cache = KVCache(100)
    tokens = list(PROMPT)
    with take(cache, tokens) as lease:
        for token in range(50):
            tokens.append(token)
            assert lease.grow(len(tokens))
            lease.publish(prefix(tokens))
        assert lease.slots.tolist() == list(range(56))
        assert cache.stats().nodes == 1
    cache.check()


def test_the_cache_imports_no_torch() -> None:
    code = "import sys, radixserve.cache.kvcache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0

from __future__ import annotations

import random
from collections import Counter

import pytest

from radixserve.cache.kvcache import KVCache
from radixserve.cache.policies.policy import Policy, Scale
from radixserve.cache.policies.ranked import least_recently_used
from radixserve.cache.policies.worth import (
    _AGES,
    _NUM_AGES,
    MOST_USES,
    ReuseLaw,
    Worth,
    _age_class,
)
from radixserve.prefix import Prefix
from tests.cache.policies.flat import Flat


def test_an_age_class_begins_where_the_one_before_it_ends() -> None:
    assert [_age_class(age) for age in (0, 1, 2, _AGES[20] - 1, _AGES[20], 10**9)] == [
        0,
        1,
        2,
        19,
        20,
        _NUM_AGES - 1,
    ]


def test_the_index_is_the_best_rate_of_hits_over_all_times_to_keep_it() -> None:
    """By brute force: 100 tokens, of which each is used again at one age or never."""
    rng = random.Random(1)
    ages = [rng.randrange(_NUM_AGES - 1) for _ in range(60)] + [_NUM_AGES] * 40
    law = ReuseLaw(0.0)
    law.came[0] = len(ages)
    law.again = [float(ages.count(age)) for age in range(_NUM_AGES)]
    law.compute()
    for age in range(_NUM_AGES):
        rates = [0.0]
        for stop in range(age + 1, _NUM_AGES + 1):
            alive = [each for each in ages if each >= age]
            hits = sum(each < stop for each in alive)
            waited = sum(
                (0.5 if each == at else 1.0) * (_AGES[at + 1] - _AGES[at])
                for each in alive
                for at in range(age, min(each + 1, stop))
            )
            rates.append(hits / max(waited, 1e-9))
        assert law.index[age] == pytest.approx(max(rates))


def test_before_anything_is_learned_the_least_recently_used_goes_first() -> None:
    index = ReuseLaw(1.0).index
    assert index == sorted(index, reverse=True)


def test_the_law_is_learned_from_every_use_that_follows_another_also_of_what_was_evicted() -> None:
    rng, size = random.Random(2), 8
    policy = Worth(Scale(size, chunk=1))
    cache = Flat(size, policy)
    prior = ReuseLaw(policy._laws[0].came[0])
    seen, again, uses = Counter[int](), Counter[tuple[int, int]](), Counter[int]()
    last: dict[int, int] = {}
    for now in range(200):
        key = rng.randrange(30)
        if key in last:
            again[min(uses[key], MOST_USES), _age_class(now - last[key])] += 1
        cache.access(key)
        uses[key], last[key] = uses[key] + 1, now + 1
        seen[min(uses[key], MOST_USES)] += 1
    for number, law in enumerate(policy._laws):
        assert sum(law.came) == pytest.approx(seen[number] + sum(prior.came))
        learned = [after - before for after, before in zip(law.again, prior.again, strict=True)]
        assert learned == pytest.approx([again[number, age] for age in range(_NUM_AGES)])


def hits_of_twenty_hot_keys(policy: Policy) -> int:
    """Each is used every 60 uses, between keys that come once, in a cache of 40."""
    cache, hits = Flat(40, policy), 0
    for turn in range(100):
        for hot in range(20):
            hits += cache.access(hot)
            for cold in range(2):
                cache.access(1000 + turn * 40 + hot * 2 + cold)
    return hits


def test_a_scan_does_not_flush_what_is_used_again_and_again() -> None:
    assert hits_of_twenty_hot_keys(least_recently_used()) == 0
    assert hits_of_twenty_hot_keys(Worth(Scale(40, chunk=1))) > 1600


def test_of_two_leaves_alike_the_deeper_one_stays_because_it_costs_more_to_compute() -> None:
    cache = KVCache(40, policy=Worth(Scale(40, chunk=1, even_depth=4)))
    deep, flat = Prefix.of("", range(30)), Prefix.of("", range(100, 110))
    for prompt in (deep, flat):
        lease = cache.receive(prompt)
        assert lease is not None
        with lease:
            lease.publish(prompt)
    cache.slots.evict(10)
    assert (cache.match(deep), cache.match(flat)) == (30, 0)


def test_the_memory_of_what_was_evicted_is_bounded() -> None:
    policy = Worth(Scale(4, chunk=1))
    cache = Flat(4, policy)
    for key in range(1000):
        cache.access(key)
    assert policy._ghosts.num_tokens == 64
    cache.cache.check()


def test_no_more_is_used_again_than_came_whatever_branches_grows_or_is_cut() -> None:
    """Otherwise a law would promise more hits than it has tokens, and nothing else would stay."""
    rng, size = random.Random(3), 60
    policy = Worth(Scale(size, chunk=4))
    cache = KVCache(size, policy=policy)
    prompts: list[list[int]] = [[]]
    for _ in range(500):
        known = rng.choice(prompts[-12:])
        prompt = known[: rng.randint(0, len(known))] + [rng.randrange(3) for _ in range(6)]
        prompts.append(prompt[:40])
        lease = cache.receive(Prefix.of("", prompts[-1]))
        assert lease is not None
        with lease:
            lease.publish(Prefix.of("", prompts[-1]))
        for law in policy._laws:
            assert sum(law.again) <= sum(law.came)

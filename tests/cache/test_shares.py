"""Quotas and floors of tenants: against their definition over lists, through the machine of the
cache, and in a flood.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from radixserve.cache.kvcache import KVCache
from radixserve.cache.policies.table import POLICIES, make_policy
from radixserve.cache.radix import Node
from radixserve.prefix import Prefix
from tests.cache.machine import CacheMachine

TENANTS = ("a", "b", "c")


def fill(cache: KVCache, tenant: str, first: int, num_tokens: int) -> None:
    """Compute and publish tokens that nobody else has."""
    prefix = Prefix.of(f"{tenant}/x", range(first, first + num_tokens))
    lease = cache.lease(prefix, num_tokens)
    assert lease is not None
    with lease:
        lease.publish(prefix)


def expected_victims(
    leaves: list[Node], tokens: Counter[str], quotas: dict[str, int], floors: dict[str, int]
) -> list[Node]:
    """The leaves that may go next, in the order in which they are preferred, by the definition."""
    by_use = sorted(leaves, key=lambda leaf: (leaf.last_use, leaf.serial))
    excess = {
        each: (tokens[each] - quotas[each]) / quotas[each]
        for each in quotas
        if any(leaf.owner == each for leaf in leaves) and tokens[each] > quotas[each]
    }
    if excess:
        most = max(excess.values())
        over = [each for each in excess if excess[each] == most]
        return [next(leaf for leaf in by_use if leaf.owner == each) for each in over]
    free = [leaf for leaf in by_use if tokens[leaf.owner] > floors.get(leaf.owner, -1)]
    return (free or by_use)[:1]


amounts = st.dictionaries(st.sampled_from(TENANTS), st.integers(1, 12))
fills = st.lists(st.tuples(st.sampled_from(TENANTS), st.integers(1, 5)), max_size=12)


@settings(deadline=None)
@given(fills, amounts, amounts, st.integers(1, 20))
def test_each_victim_is_that_of_the_definition(
    filled: list[tuple[str, int]], quotas: dict[str, int], floors: dict[str, int], evicted: int
) -> None:
    cache = KVCache(64)
    for number, (tenant, num_tokens) in enumerate(filled):
        fill(cache, tenant, 10 * number, num_tokens)
    for tenant in TENANTS:
        cache.slots.shares.limit(tenant, quotas.get(tenant, 0), floors.get(tenant, 0))
    for _ in range(evicted):
        leaves = [node for node in cache.tree.nodes() if node.edge and not node.children]
        victim = cache.slots.shares.victim()
        counted = Counter(cache.tree.tokens_of)
        assert (victim is None) == (not leaves)
        assert victim is None or victim in expected_victims(leaves, counted, quotas, floors)
        cache.slots.evict(1)
        cache.check()


def test_a_flood_takes_from_others_only_what_is_above_their_floor() -> None:
    cache = KVCache(100)
    fill(cache, "quiet", 0, 30)
    cache.slots.limit("quiet/x", 0, 0.2)
    cache.slots.limit("flood/x", 0, 0)
    for number in range(1, 40):
        fill(cache, "flood", 1000 * number, 10)
    assert cache.match(Prefix.of("quiet/x", range(30))) == 20
    assert cache.slots.shares.evicted["quiet", "others"] == 10
    assert cache.slots.shares.evicted["flood", "others"] == 0


def test_a_tenant_above_its_quota_loses_its_own_tokens_first() -> None:
    cache = KVCache(100, slot_bytes=8)
    fill(cache, "quiet", 0, 30)
    cache.slots.limit("flood/x", 40 * 8, 0)  # bytes
    for number in range(1, 40):
        fill(cache, "flood", 1000 * number, 10)
    assert cache.match(Prefix.of("quiet/x", range(30))) == 30
    assert cache.tree.tokens_of["flood"] == 70  # nobody else needed the room
    fill(cache, "late", 5, 40)
    assert cache.tree.tokens_of == {"quiet": 20, "flood": 40, "late": 40}  # then the oldest


def test_a_floor_yields_where_nothing_else_can_be_evicted() -> None:
    cache = KVCache(10)
    fill(cache, "a", 0, 10)
    cache.slots.limit("a/x", 0, 1.0)
    fill(cache, "b", 50, 10)
    assert cache.tree.tokens_of == {"b": 10}


def test_a_quota_below_one_token_is_one_token_and_not_none() -> None:
    cache = KVCache(10, slot_bytes=1000)
    fill(cache, "a", 0, 5)
    cache.slots.limit("a/x", 2, 0)
    fill(cache, "b", 50, 5)
    fill(cache, "b", 60, 1)
    assert cache.tree.tokens_of == {"a": 4, "b": 6}


def test_limits_and_metrics_of_namespaces_without_a_tenant_do_not_exist() -> None:
    cache = KVCache(10)
    cache.slots.limit("public", 0.5, 0.5)
    assert cache.slots.shares.numbers(1) == {}


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_any_policy_decides_where_no_share_does(name: str) -> None:
    plain, shared = (KVCache(40, policy=make_policy(name, 40)) for _ in range(2))
    for cache in (plain, shared):
        for number in range(30):
            fill(cache, "abc"[number % 3], 100 * (number % 7), 3 + number % 5)
        cache.check()
    assert plain.tree.tokens_of == shared.tree.tokens_of


class Shared(CacheMachine):
    """The machine in which some sequences have a tenant, whose shares change at any time."""

    recency = 0

    @rule(quota=st.integers(0, 20), floor=st.integers(0, 20))
    def limit(self, quota: int, floor: int) -> None:
        self.cache.slots.shares.limit("tenant", quota, floor)


def test_a_walk_with_shares() -> None:
    walk = settings(
        deadline=None,
        stateful_step_count=40,
        max_examples=30,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Shared, settings=walk)

"""Random walks over the cache with every policy; the machine and its model are in machine.py."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from radixserve.cache.policies.table import POLICIES
from tests.cache.machine import (
    CacheMachine,
    CacheOff,
    MostRecentlyUsedFirst,
    NoOrderAtAll,
    machine_of,
)

WALK = settings(deadline=None, stateful_step_count=40, suppress_health_check=list(HealthCheck))
SHORTER = settings(WALK, max_examples=max(WALK.max_examples // 4, 20))

TestLeastRecentlyUsedFirst = CacheMachine.TestCase
TestMostRecentlyUsedFirst = MostRecentlyUsedFirst.TestCase
TestNoOrderAtAll = NoOrderAtAll.TestCase
TestCacheOff = CacheOff.TestCase

TestLeastRecentlyUsedFirst.settings = WALK
for shorter in (TestMostRecentlyUsedFirst, TestNoOrderAtAll, TestCacheOff):
    shorter.settings = SHORTER
del shorter


@pytest.mark.parametrize("name", sorted(POLICIES.keys() - {"lru"}))
def test_a_walk_with_every_policy(name: str) -> None:
    run_state_machine_as_test(machine_of(name), settings=SHORTER)

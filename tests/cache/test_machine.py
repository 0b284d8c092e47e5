"""Random walks over the cache with every policy; the machine and its model are in machine.py."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.cache.machine import (
    CacheMachine,
    CacheOff,
    MostRecentlyUsedFirst,
    NoOrderAtAll,
    OldestNodeFirst,
)

WALK = settings(deadline=None, stateful_step_count=40, suppress_health_check=list(HealthCheck))
SHORTER = settings(WALK, max_examples=max(WALK.max_examples // 4, 20))

TestLeastRecentlyUsedFirst = CacheMachine.TestCase
TestMostRecentlyUsedFirst = MostRecentlyUsedFirst.TestCase
TestOldestNodeFirst = OldestNodeFirst.TestCase
TestNoOrderAtAll = NoOrderAtAll.TestCase
TestCacheOff = CacheOff.TestCase

TestLeastRecentlyUsedFirst.settings = WALK
for shorter in (TestMostRecentlyUsedFirst, TestOldestNodeFirst, TestNoOrderAtAll, TestCacheOff):
    shorter.settings = SHORTER
del shorter

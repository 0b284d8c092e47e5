"""When memory moves between models: caches that evict by last use, under traffic of any speeds."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.front.sharing_rule import Part, Transfer, decide

CHECK = 0.5  # seconds


class Cache:
    """Bytes of prefixes that are asked for in turn, `per_check` of them at each check."""

    def __init__(self, part: int, least: int) -> None:
        self.part, self.least = part, least
        self.per_check = self.distinct = 0
        self._used_at: OrderedDict[int, float] = OrderedDict()
        self._next = 0
        self._evicted = False
        self._size = 0  # at the last check

    def check(self, now: float, most: int) -> Part:
        self._evicted = False
        for _ in range(self.per_check):
            self._use(self._next % self.distinct, now)
            self._next += 1
        oldest = next(iter(self._used_at.values()), now)
        unused = self.part - len(self._used_at)
        age = float(int(now - oldest))  # as an engine tells it: rounded down to the second
        fills, self._size = len(self._used_at) > self._size, len(self._used_at)
        return Part(
            self.part, self.least, most, unused, age, is_short=self._evicted, is_filling=fills
        )

    def _use(self, key: int, now: float) -> None:
        if self._used_at.pop(key, None) is None:
            self.shrink(self.part - 1)
        self._used_at[key] = now

    def shrink(self, size: int) -> None:
        while len(self._used_at) > size:
            self._used_at.popitem(last=False)
            self._evicted = True


class Caches:
    """Some of them under one budget."""

    def __init__(self, total: int, count: int, least: int) -> None:
        self.total, self.now = total, 0.0
        self.all = {name: Cache(total // count, least) for name in "abc"[:count]}

    def traffic(self, per_check: list[int], distinct: list[int]) -> None:
        for cache, count, size in zip(self.all.values(), per_check, distinct, strict=True):
            cache.per_check, cache.distinct = count, size

    def check(self) -> Transfer | None:
        self.now += CHECK
        parts = {name: each.check(self.now, self.total) for name, each in self.all.items()}
        free = self.total - sum(each.part for each in self.all.values())
        move = decide(parts, free)
        if move is not None:
            self.make(move)
        assert sum(each.part for each in self.all.values()) <= self.total
        assert all(each.part >= each.least for each in self.all.values())
        return move

    def make(self, move: Transfer) -> None:
        assert move.num_bytes > 0
        if move.giver is not None:
            giver = self.all[move.giver]
            giver.part -= move.num_bytes
            giver.shrink(giver.part)
        self.all[move.taker].part += move.num_bytes


SPEED = st.just(0) | st.integers(5, 80)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(SPEED, st.integers(1, 900)), min_size=2, max_size=3),
    st.integers(1, 100),
)
def test_under_steady_traffic_memory_comes_to_rest(
    traffic: list[tuple[int, int]], least: int
) -> None:
    caches = Caches(600, len(traffic), least)
    caches.traffic([speed for speed, _ in traffic], [size for _, size in traffic])
    direction: dict[frozenset[str | None], str] = {}
    num_back = 0
    for _ in range(250):
        if move := caches.check():
            between = frozenset((move.giver, move.taker))
            num_back += direction.get(between, move.taker) != move.taker
            direction[between] = move.taker
    assert num_back <= 1, "memory swings"
    assert not any(caches.check() for _ in range(50)), "memory does not come to rest"


def test_memory_follows_traffic_that_goes_to_the_other_model_and_back() -> None:
    caches = Caches(600, 2, least=60)
    for busy, idle in (("a", "b"), ("b", "a"), ("a", "b")):
        rates = {busy: 100, idle: 0}
        caches.traffic([rates["a"], rates["b"]], [520, 520])
        for _ in range(20):  # ten seconds
            caches.check()
        assert caches.all[busy].part >= 520
        assert caches.all[idle].part >= 60


PART = Part(
    budget=400,
    least=100,
    most=800,
    unused=0,
    oldest_seconds=10.0,
    is_short=False,
    is_filling=False,
)


@pytest.mark.parametrize(
    ("taker", "giver", "num_bytes"),
    [
        ({"oldest_seconds": 6.0}, {}, 100),  # a quarter of the giver's
        ({"oldest_seconds": 6.0, "budget": 100}, {}, 50),  # half of the taker's
        ({"oldest_seconds": 6.0}, {"budget": 120}, 20),  # what is above the least
        ({"oldest_seconds": 6.0, "budget": 790}, {}, 10),  # what is below the most
        ({"oldest_seconds": 6.0}, {"budget": 100}, 0),
        ({"oldest_seconds": 6.0, "budget": 800}, {}, 0),
        ({"oldest_seconds": 7.0}, {}, 0),  # their ages are too close
        ({"oldest_seconds": 50.0}, {"unused": 30}, 30),  # unused memory goes whatever the ages
        ({"oldest_seconds": 50.0}, {"unused": 10}, 0),  # but for a small rest
        ({"oldest_seconds": 50.0}, {"unused": 30, "is_filling": True}, 0),  # it is about to be used
        ({"oldest_seconds": 6.0, "is_short": False}, {"unused": 300}, 0),  # nobody needs it
        ({"oldest_seconds": 0.0}, {"oldest_seconds": 0.0}, 0),  # nothing can be evicted
    ],
)
def test_how_much_moves(taker: dict[str, Any], giver: dict[str, Any], num_bytes: int) -> None:
    parts = {"a": replace(PART, **{"is_short": True, **taker}), "b": replace(PART, **giver)}
    move = decide(parts, free=0)
    assert (0 if move is None else move.num_bytes) == num_bytes
    assert move is None or (move.giver, move.taker) == ("b", "a")


def test_what_no_model_has_goes_first_and_to_the_model_that_evicts_the_youngest() -> None:
    parts = {
        "a": replace(PART, is_short=True, oldest_seconds=9.0),
        "b": replace(PART, is_short=True, oldest_seconds=3.0),
        "c": replace(PART, oldest_seconds=99.0),
    }
    move = decide(parts, free=30)
    assert move is not None
    assert (move.giver, move.taker, move.num_bytes) == (None, "b", 30)
    move = decide(parts, free=0)
    assert move is not None
    assert (move.giver, move.taker) == ("c", "b")

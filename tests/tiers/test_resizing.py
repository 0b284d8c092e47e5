"""The K/V budget of device and host shrinks and grows while requests run."""

from __future__ import annotations

import random
import sys
import time

import pytest

from radixserve.prefix import Prefix
from radixserve.tiers import trimming
from tests.engine.content_model import expected
from tests.engine.harness import request
from tests.tiers.parts import Tiered


def prompt_of(number: int, length: int = 20) -> list[int]:
    """Prompts whose second tokens differ, so that they share one token."""
    return [1, number % 11, *range(length - 2)]


def trim(engine: Tiered) -> None:
    """Until all memory is given back that can be."""
    engine.step()
    while engine.core.patience is not None:
        engine.step()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes over the tree follow one another without a pause."""
    monkeypatch.setattr(trimming, "AGAIN_SECONDS", 0.0)


def test_passes_that_move_nothing_follow_each_other_more_and_more_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(trimming, "AGAIN_SECONDS", 1.0)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    engine = Tiered(300)
    engine.ask(request("low", prompt_of(1, 100), 1))
    engine.ask(request("high", prompt_of(2, 100), 1))
    pinned = engine.cache.hold(Prefix.of("public", prompt_of(2, 100)))
    engine.core.scheduler.resize(150)
    [trim] = trimming.trimmings_of(engine.cache, engine.pool)
    pauses = []
    for _ in range(9):
        trim.work()
        while trim.patience == 0.0:
            trim.work()
        assert trim.patience is not None
        pauses.append(trim.patience)
        now[0] += trim.patience
    assert pauses == sorted(pauses)
    assert pauses[-1] == trimming.LATEST_SECONDS
    pinned.release()
    trim.work()
    while trim.patience == 0.0:
        trim.work()
    assert trim.patience is None, "nothing is left to move"


@pytest.mark.parametrize("seed", range(6))
def test_answers_do_not_depend_on_the_budget_which_moves_all_the_time(seed: int) -> None:
    chance = random.Random(seed)
    engine = Tiered(160, host_slots=96)
    assert engine.host is not None
    wanted = {}
    for number in range(40):
        prompt = prompt_of(chance.randrange(9), chance.randrange(3, 40))
        name, count = f"r{number}", chance.randrange(1, 12)
        wanted[name] = expected(prompt, count)
        engine.submit(request(name, prompt, count))
        engine.core.scheduler.resize(chance.randrange(8, 161))
        engine.host.cache.slots.resize(chance.randrange(8, 97))
        for _ in range(chance.randrange(12)):
            engine.step()
        if chance.random() < 0.2:
            engine.take(engine.core.abort(f"r{chance.randrange(number + 1)}"))
    engine.settle()
    for name, tokens in wanted.items():
        got = engine.tokens(name)
        aborted = engine.events[name][-1].finish == "abort"
        assert got == tokens[: len(got)] if aborted else got == tokens
    engine.core.scheduler.resize(8)
    assert engine.cache.stats().num_slots == 8
    engine.core.scheduler.resize(160)
    engine.assert_drained()
    engine.cache.slots.evict(160)
    assert engine.cache.stats().free == 160


def test_a_request_keeps_the_room_that_it_needs_and_what_is_over_follows_when_it_ends() -> None:
    engine = Tiered(100)
    engine.submit(request("long", prompt_of(1, 50), 20))
    engine.step()
    engine.core.scheduler.resize(16)
    assert engine.cache.slots.budget == 69, "all but the last token of prompt and answer"
    engine.submit(request("longer", prompt_of(2, 60), 20))
    assert engine.cache.slots.budget == 79, "it was accepted before the front knew of the change"
    engine.run()
    assert engine.tokens("long") == expected(prompt_of(1, 50), 20)
    assert engine.tokens("longer") == expected(prompt_of(2, 60), 20)
    stats = engine.cache.stats()
    assert (engine.cache.slots.budget, stats.num_slots, stats.cached) == (16, 16, 16)


def test_a_request_that_no_budget_holds_ends_with_an_error() -> None:
    engine = Tiered(40)
    engine.submit(request("a", prompt_of(1, 40), 9))
    assert engine.events["a"][-1].error == "the request needs 48 slots, there are 40"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is given back on Linux only")
def test_cached_kv_moves_away_from_the_end_of_the_pool_whose_memory_is_given_back() -> None:
    engine = Tiered(4096)
    for number in range(4):
        engine.ask(request(f"r{number}", prompt_of(number, 900), 1))
    engine.core.scheduler.resize(2000)  # the two oldest and a part of the third go
    trim(engine)
    assert engine.cache.slots.allocator.held == [(2000, 2096)]
    assert engine.pool.k[:, 2048:].abs().sum() == 0, "what was there is given back"
    engine.ask(request("again", prompt_of(3, 900), 1))
    assert engine.cached("again") == (899, 0, 0)
    assert engine.tokens("again") == expected(prompt_of(3, 900), 1)
    engine.core.scheduler.resize(4096)
    engine.ask(request("other", prompt_of(5, 2000), 1))
    assert engine.tokens("other") == expected(prompt_of(5, 2000), 1)


def test_what_a_request_leases_is_moved_after_its_end_only() -> None:
    engine = Tiered(300)
    engine.ask(request("low", prompt_of(1, 100), 1))
    engine.submit(request("high", prompt_of(2, 100), 40))
    for _ in range(12):
        engine.step()
    engine.core.scheduler.resize(150)
    trim_until = time.monotonic() + 5
    while engine.core.has_work and time.monotonic() < trim_until:
        engine.step()
    trim(engine)
    assert engine.tokens("high") == expected(prompt_of(2, 100), 40)
    assert engine.cache.slots.allocator.held == [(150, 150)]


def test_an_eviction_waits_for_nothing_that_host_memory_does_between_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Tiered(256, host_slots=256)
    for number in range(5):
        engine.submit(request(f"r{number}", prompt_of(number, 50), 1))
    engine.run()
    worked: list[object] = []
    monkeypatch.setattr(trimming.Trimming, "work", lambda self: worked.append(self))
    engine.cache.slots.evict(200)
    assert engine.host is not None
    assert engine.host.cache.stats().cached >= 200
    assert not worked


def test_host_memory_that_shrinks_keeps_what_was_used_last() -> None:
    engine = Tiered(64, host_slots=256)
    assert engine.host is not None
    for number in range(5):
        engine.ask(request(f"r{number}", prompt_of(number, 50), 1))
    before = engine.host.cache.stats().cached
    slot = engine.host.capacity_bytes // 256
    evicted = engine.host.cache.slots.resize(engine.host.slots_in(100 * slot))
    assert evicted == before - 100
    assert engine.host.cache.slots.budget == 100
    trim(engine)
    assert engine.host.cache.slots.allocator.held == [(100, 156)]
    engine.ask(request("again", prompt_of(3, 50), 1))
    assert engine.cached("again")[1] > 30, "what the device evicted last is still there"
    assert engine.tokens("again") == expected(prompt_of(3, 50), 1)


def test_shares_of_tenants_are_shares_of_the_budget_in_force() -> None:
    engine = Tiered(100)
    engine.cache.slots.limit("acme/", 0.5, 0.0)
    engine.cache.slots.resize(40)
    for number in range(3):
        prefix = Prefix.of("acme/", prompt_of(number, 12))
        with engine.cache.receive(prefix) or pytest.fail("there is room") as lease:
            lease.publish(prefix)
    other = Prefix.of("other/", list(range(20)))
    with engine.cache.receive(other) or pytest.fail("there is room") as lease:
        lease.publish(other)
    assert engine.cache.tree.tokens_of == {"acme": 20, "other": 20}

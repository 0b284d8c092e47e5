"""Settings change between two steps, and answers stay what they are."""

from __future__ import annotations

import pytest

from radixserve.cache.policies.table import POLICIES
from radixserve.engine.configuring import Configuring
from radixserve.prefix import pack
from radixserve.questions import Asked, Configure, Configured, Pin
from tests.engine.content_model import expected
from tests.engine.harness import request
from tests.tiers.parts import Tiered
from tests.tiers.test_resizing import prompt_of


def configure(engine: Tiered, **changes: object) -> Configured:
    engine.core.ask(Asked(1, Configure(**changes)))  # type: ignore[arg-type]
    for _ in range(100):
        if answers := engine.core.answers():
            break
        engine.step()
    (answered,) = answers
    assert isinstance(answered.answer, Configured)
    engine.cache.check()
    return answered.answer


def test_budgets_shrink_and_grow_and_tell_what_they_evicted() -> None:
    engine = Tiered(200, host_slots=200)
    assert engine.host is not None
    for number in range(4):
        engine.ask(request(f"r{number}", prompt_of(number, 40), 1))
    told = configure(engine, kv_budget=100, host_budget=100 * 1024)
    assert told == Configured(evicted_tokens={"device": 57, "host": 0})
    assert engine.cache.stats().num_slots == engine.host.cache.stats().num_slots == 100
    engine.settle()
    assert configure(engine, host_budget=70 * 1024).evicted_tokens["host"] > 0
    configure(engine, kv_budget=1 << 40, host_budget=1 << 40)
    assert engine.cache.stats().num_slots == engine.host.cache.stats().num_slots == 200


def test_host_memory_that_grows_has_room_for_what_the_device_evicts_meanwhile() -> None:
    engine = Tiered(200, host_slots=200)
    assert engine.host is not None
    configure(engine, host_budget=80 * 1024)
    for number in range(4):
        engine.ask(request(f"r{number}", prompt_of(number, 45), 1))
    before = engine.cache.stats().cached
    told = configure(engine, kv_budget=70, host_budget=200 * 1024)
    engine.settle()
    assert told.evicted_tokens["host"] == 0
    assert engine.host.cache.stats().cached > 80
    assert engine.host.cache.stats().cached + engine.cache.stats().cached >= before


def test_a_budget_shrinks_in_parts_between_which_steps_run() -> None:
    engine = Tiered(4096)
    for number in range(4):
        engine.ask(request(f"r{number}", prompt_of(number, 900), 1))
    engine.submit(request("a", prompt_of(7, 100), 20))
    configuring = Configuring(engine.cache, engine.core.scheduler, engine.tiers)
    budgets = []
    for _ in configuring.change(Configure(kv_budget=64)):
        budgets.append(engine.cache.slots.budget)
        engine.step()
    assert budgets == sorted(budgets, reverse=True)
    assert len(set(budgets)) > 3
    assert engine.core.scheduler.budget == 64
    engine.run()
    assert engine.tokens("a") == expected(prompt_of(7, 100), 20)


def test_a_budget_gives_up_what_is_free_at_once() -> None:
    engine = Tiered(100_000)
    configuring = Configuring(engine.cache, engine.core.scheduler, engine.tiers)
    assert len(list(configuring.change(Configure(kv_budget=64)))) == 1
    engine.cache.check()


def test_what_running_requests_hold_beyond_the_budget_is_told() -> None:
    engine = Tiered(200)
    engine.submit(request("a", prompt_of(1, 100), 20))
    engine.step()
    told = configure(engine, kv_budget=64)
    held = engine.cache.stats().num_slots - 64
    assert told.excess_bytes == {"device": held}
    assert held > 0
    engine.run()
    assert engine.tokens("a") == expected(prompt_of(1, 100), 20)
    assert engine.cache.stats().num_slots == 64


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_another_policy_takes_over_while_requests_run(name: str) -> None:
    engine = Tiered(96, host_slots=96)
    engine.submit(*(request(f"r{n}", prompt_of(n, 12 + n), 6) for n in range(8)))
    for _ in range(9):
        engine.step()
    configure(engine, eviction_policy=name)
    engine.submit(*(request(f"s{n}", prompt_of(n, 14 + n), 6) for n in range(8)))
    configure(engine, kv_budget=64)
    engine.settle()
    for number in range(8):
        assert engine.tokens(f"r{number}") == expected(prompt_of(number, 12 + number), 6)
        assert engine.tokens(f"s{number}") == expected(prompt_of(number, 14 + number), 6)
    engine.assert_drained()


def test_fewer_seats_let_those_that_run_go_on() -> None:
    engine = Tiered(256)
    engine.submit(*(request(f"r{n}", prompt_of(n, 8), 9) for n in range(6)))
    while len(engine.core.scheduler.running) < 4:
        engine.step()
    configure(engine, max_running=1, prefill_share=0.5)
    assert engine.core.scheduler.pace.share == 0.5
    most = 4
    while engine.core.has_work:
        engine.step()
        assert len(engine.core.scheduler.running) <= most
        most = max(1, len(engine.core.scheduler.running))
    for number in range(6):
        assert engine.tokens(f"r{number}") == expected(prompt_of(number, 8), 9)


def test_pins_let_go_of_more_than_their_share_of_the_new_budget() -> None:
    engine = Tiered(400)
    engine.ask(request("a", prompt_of(1, 90), 1))
    pin = Pin(id="p", seconds=60.0, renews=True, namespace="public", packed=pack(prompt_of(1, 90)))
    engine.core.ask(Asked(1, pin))
    engine.core.answers()
    assert engine.cache.stats().pinned == 90
    told = configure(engine, kv_budget=64)
    assert told == Configured(evicted_tokens={"device": 26})
    assert engine.cache.stats().num_slots == 64

"""A step that computes one tenant's long prompt is given up for a cached prompt of another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.engine.counters import GIVEN_UP, STEP_TOKENS
from radixserve.engine.giving_way import LOST_SHARE, MOST_TOKENS, GivingWay
from radixserve.request import Request
from tests.engine.content_model import expected
from tests.engine.harness import Harness, request
from tests.engine.test_fairness import of

CACHED = [1, 2, 3] * 10
LONG = [i % 7 for i in range(200)]


class Meanwhile(Harness):
    """An engine that is shown requests while a step computes, and gets them after it."""

    def __init__(self, max_running: int, max_step_tokens: int = 40) -> None:
        super().__init__(4000, max_running, max_step_tokens, ahead=False, prefill_share=1.0)
        self.core.giving_way.computed(1000.0)  # some time may be lost
        self.core.arrivals = self._arrivals
        self._coming: list[Request] = []
        self._shown = 0

    def _arrivals(self) -> list[Request]:
        new, self._shown = self._coming[self._shown :], len(self._coming)
        return new

    def step_with(self, *requests: Request) -> bool:
        """A step while which these requests come. Whether it was given up."""
        before = self.num_given_up
        self._coming, self._shown = list(requests), 0
        self.step()
        self.submit(*self._coming)
        self._coming = []
        return self.num_given_up > before

    @property
    def num_given_up(self) -> float:
        return self.core.stats().value(GIVEN_UP)


@pytest.fixture
def engine() -> Meanwhile:
    """`calm` has a cached prompt, and the long prompt of `flood` is being computed."""
    engine = Meanwhile(max_running=3)
    engine.submit(of("calm", request("first-0", CACHED, 1)))
    engine.run()
    engine.submit(of("flood", request("long-0", LONG, 2)))
    engine.step()
    engine.core.stats()
    return engine


def warm(tenant: str = "calm", more: int = 2, **fields: int) -> Request:
    return of(tenant, request("warm-0", CACHED + [5] * more, 3), **fields)


def test_the_next_step_is_that_of_the_newcomer_alone(engine: Meanwhile) -> None:
    assert engine.step_with(warm())
    engine.step()
    assert engine.core.stats().seen(STEP_TOKENS) == [2]
    assert engine.tokens("warm-0") == expected([*CACHED, 5, 5], 1)
    engine.run()
    assert engine.tokens("warm-0") == expected([*CACHED, 5, 5], 3)
    assert engine.tokens("long-0") == expected(LONG, 2)
    engine.assert_drained()


@pytest.mark.parametrize(
    "newcomer",
    [
        warm("flood"),
        of("calm", request("cold-0", [9] * 50)),
        warm(more=MOST_TOKENS + 1),
        warm(priority=1000),
    ],
    ids=["of the same tenant", "not cached", "long", "later by its priority"],
)
def test_it_is_not_given_up_for_others(engine: Meanwhile, newcomer: Request) -> None:
    assert not engine.step_with(newcomer)
    engine.run()
    assert engine.tokens("long-0") == expected(LONG, 2)


def test_it_is_not_given_up_for_a_tenant_that_had_more(engine: Meanwhile) -> None:
    engine.submit(of("calm", request("much-0", [8] * 150, 1)))
    for _ in range(3):
        engine.step()
    assert not engine.step_with(warm())


@pytest.mark.parametrize("changed", [{"prefill_share": 0}, {"max_running": 1}])
def test_without_a_limit_for_prefills_or_without_a_seat_it_goes_on(
    engine: Meanwhile, changed: dict[str, Any]
) -> None:
    scheduler = engine.core.scheduler
    scheduler.limits = replace(scheduler.limits, **changed)
    assert not engine.step_with(warm())


def test_little_time_is_lost() -> None:
    giving_way, lost, computed = GivingWay(), 0.0, 0.0
    harness = Meanwhile(max_running=3)
    harness.submit(request("long-0", LONG))
    works = harness.core.scheduler.plan()
    for _ in range(10_000):
        if giving_way.may_be(works):
            giving_way.lost(0.02)
            lost += 0.02
        else:
            giving_way.computed(0.02)
            computed += 0.02
    assert 0.9 * LOST_SHARE <= lost / computed <= LOST_SHARE + 0.02 / computed


coming = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 40), st.integers(1, 5), st.booleans()),
    min_size=1,
    max_size=12,
)


@given(coming, st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_answers_do_not_depend_on_it(
    coming: list[tuple[str, int, int, bool]], max_running: int
) -> None:
    """Prompts with a common beginning come while long ones are computed that have none."""
    engine = Meanwhile(max_running, max_step_tokens=6)
    for tenant in "ab":
        engine.submit(of(tenant, request(f"{tenant}-0", CACHED, 1)))
    engine.run()
    asked = {}
    for number, (tenant, length, max_tokens, meanwhile) in enumerate(coming):
        prompt = [*CACHED, length % 11] if length < 20 else [number % 11] * length
        each = of(tenant, request(f"r{number}-0", prompt, max_tokens))
        asked[each.id] = expected(prompt, max_tokens)
        if meanwhile and engine.core.has_work:
            engine.step_with(each)
        else:
            engine.submit(each)
            engine.step()
        engine.core.giving_way.computed(1000.0)
    engine.run()
    assert {name: engine.tokens(name) for name in asked} == asked
    engine.assert_drained()

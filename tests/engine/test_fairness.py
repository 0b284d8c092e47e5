"""Who computes when: fairness between tenants and bodies, warm prompts before cold ones, and bounds
on both.
"""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.engine.counters import STEP_TOKENS, TENANT_REQUESTS
from radixserve.engine.prefill_pace import MIN_TOKENS, PrefillPace
from radixserve.engine.queue import MAX_OVERTAKEN, SHARED_SECONDS, FairQueue
from radixserve.engine.sequence import Sequence
from radixserve.request import Request
from tests.engine.content_model import expected
from tests.engine.harness import Harness, request

COLD = [i % 7 for i in range(60)]


def of(tenant: str, each: Request, **fields: object) -> Request:
    return msgspec.structs.replace(each, tenant=tenant, namespace=tenant, **fields)


def first_step_of(harness: Harness, name: str) -> int:
    """Steps until the request has got a token."""
    for step in range(1, 2000):
        harness.step()
        if harness.tokens(name):
            return step
    raise AssertionError("it starves")


@pytest.mark.parametrize("ahead", [False, True])
def test_one_body_with_many_choices_starves_nobody(ahead: bool) -> None:
    harness = Harness(num_slots=2000, max_running=4, ahead=ahead)
    choices = [request(f"many-{i}", COLD, 200, seed=i) for i in range(16)]
    harness.submit(*choices)
    for _ in range(12):
        harness.step()
    harness.submit(request("other-0", [9, 8, 7], 4))
    assert first_step_of(harness, "other-0") < 8
    harness.run()
    for each in choices:
        assert harness.tokens(each.id) == expected(COLD, 200)
    harness.assert_drained()


@pytest.mark.parametrize("ahead", [False, True])
def test_a_flood_of_one_tenant_leaves_half_of_the_seats_to_another(ahead: bool) -> None:
    harness = Harness(num_slots=4000, max_running=4, ahead=ahead)
    for i in range(20):
        harness.submit(of("flood", request(f"flood{i}-0", [i % 5, *COLD], 60)))
    for _ in range(30):
        harness.step()
    harness.submit(*(of("calm", request(f"calm{i}-0", [7, i % 5, 3], 40)) for i in range(8)))
    for _ in range(8):
        harness.step()
    seats = Counter(each.request.tenant for each in harness.core.scheduler.running)
    assert seats == {"flood": 2, "calm": 2}
    stats = harness.core.stats()
    told = [
        stats.value(TENANT_REQUESTS, tenant, state)
        for tenant in ("flood", "calm")
        for state in ("running", "waiting")
    ]
    assert told == [2, 18, 2, 6]
    harness.run()
    assert harness.core.stats().total(TENANT_REQUESTS) == 0
    for i in range(8):
        assert harness.tokens(f"calm{i}-0") == expected([7, i % 5, 3], 40)
    harness.assert_drained()


def test_computing_is_shared_by_weight() -> None:
    harness = Harness(num_slots=20_000, max_running=6, ahead=False)
    for i in range(40):
        prompt = [i % 11, i // 11, *([i % 5] * 98)]
        harness.submit(of("light", request(f"light{i}-0", prompt, 1), weight=1.0))
        harness.submit(of("heavy", request(f"heavy{i}-0", [10, *prompt], 1), weight=3.0))
    for _ in range(200):
        harness.step()
    done = Counter(name.rstrip("-0123456789") for name in harness.events)
    assert 2.0 <= done["heavy"] / done["light"] <= 4.0


def test_a_warm_prompt_does_not_wait_for_cold_ones() -> None:
    harness = Harness(num_slots=4000, max_running=8, ahead=False)
    harness.submit(request("first-0", COLD, 1))
    harness.run()
    for i in range(12):
        harness.submit(request(f"cold{i}-0", [i % 11, 10 - i % 10] * 50, 1))
    harness.step()
    harness.submit(request("warm-0", [*COLD, 1], 1))
    assert first_step_of(harness, "warm-0") <= 3
    harness.run()


def test_a_long_prefill_is_not_passed_for_good() -> None:
    harness = Harness(num_slots=20_000, max_running=8, ahead=False)
    harness.submit(request("long-0", [3, 1, 4] * 40, 1))
    for step in range(200):
        harness.submit(request(f"short{step}-0", [step % 11, step // 11 % 11, 5] * 5, 1))
        harness.step()
        if harness.tokens("long-0"):
            return
    raise AssertionError("it starves")


matched = st.integers(0, 50)


@given(st.lists(st.tuples(st.sampled_from("ab"), matched, st.booleans()), max_size=60))
def test_nobody_is_overtaken_more_than_allowed_and_nobody_is_lost(
    steps: list[tuple[str, int, bool]],
) -> None:
    """Against a list: each step adds a sequence of a tenant, or admits the first candidate."""
    cached: dict[str, int] = {}
    queue = FairQueue(lambda each: cached[each.request.id])
    waiting: list[Sequence] = []
    for number, (tenant, num_matched, adds) in enumerate(steps):
        if adds or not waiting:
            each = of(tenant, request(f"{number}", [0] * 51))
            cached[each.id] = num_matched
            waiting.append(Sequence.of(each, []))
            queue.add(waiting[-1])
            continue
        first = queue.candidates(8)[0]
        queue.admit(first)
        queue.served(first, 51 - first.num_matched)
        waiting.remove(first)
        queue.leave(first)
    assert set(queue) == set(waiting)
    assert len(queue) == len(waiting)
    assert all(each.num_overtaken <= MAX_OVERTAKEN for each in waiting)
    assert set(queue.candidates(100)) == set(waiting)


def test_priority_is_time() -> None:
    queue = FairQueue(lambda each: 0)
    for name, arrived, priority in (("a", 0, 1), ("b", 5, 0), ("c", 15, 0), ("d", 12, -1)):
        each = msgspec.structs.replace(
            request(name, [1]), arrived=float(arrived), priority=priority
        )
        queue.add(Sequence.of(each, []))
    assert [each.request.id for each in queue.candidates(9)] == ["d", "b", "a", "c"]


def test_a_cut_prefill_gives_the_same_answers() -> None:
    harness = Harness(num_slots=2000, max_running=4, ahead=False)
    harness.submit(*(request(f"r{i}-0", [i, 3, 5], 80) for i in range(3)))
    harness.step()
    pace = harness.core.scheduler.pace = PrefillPace(1.0)
    pace.observe(0, 1.0, is_full=True)
    pace.observe(20, 2.0, is_full=True)
    pace.observe = lambda *_, **__: None  # type: ignore[method-assign]  # times of this machine
    harness.submit(request("long-0", COLD * 3, 2))
    for _ in range(12):
        tokens = [len(harness.tokens(f"r{i}-0")) for i in range(3)]
        harness.step()
        assert [len(harness.tokens(f"r{i}-0")) for i in range(3)] == [n + 1 for n in tokens]
        assert harness.core._recent[-1][1] <= 3 + MIN_TOKENS
    harness.run()
    assert harness.tokens("long-0") == expected(COLD * 3, 2)


def test_a_prompt_is_cut_while_another_tenant_may_come_and_only_then() -> None:
    harness = Harness(num_slots=4000, max_step_tokens=64, ahead=False)
    pace = harness.core.scheduler.pace = PrefillPace(1.0, 1.0)
    pace.observe(64, 64 * 0.05, is_full=True)
    pace.observe = lambda *_, **__: None  # type: ignore[method-assign]  # times of this machine
    now = [0.0]
    harness.core.scheduler.waiting._clock = lambda: now[0]

    def longest_step(name: str) -> int:
        harness.core.stats()
        harness.submit(of("flood", request(name, [len(name), *COLD], 1)))
        harness.run()
        return int(max(harness.core.stats().seen(STEP_TOKENS)))

    assert longest_step("alone") == 61
    harness.submit(of("calm", request("calm", [1, 2, 3], 1)))
    harness.run()
    assert longest_step("soon") == 20
    now[0] += SHARED_SECONDS + 1
    assert longest_step("later on") == 61


@pytest.mark.parametrize("ahead", [False, True])
def test_a_short_prompt_is_in_the_first_step_after_it_came(ahead: bool) -> None:
    harness = Harness(num_slots=4000, max_step_tokens=16, ahead=ahead)
    harness.submit(of("flood", request("flood-0", COLD * 5, 1)))
    harness.step()
    harness.submit(of("calm", request("calm-0", [7, 3], 4)))
    assert first_step_of(harness, "calm-0") == 1 + ahead
    harness.run()
    harness.assert_drained()


@pytest.mark.parametrize("ahead", [False, True])
def test_who_fills_the_budget_makes_room_for_another_tenant(ahead: bool) -> None:
    harness = Harness(num_slots=400, max_running=8, ahead=ahead)
    for i in range(3):
        harness.submit(of("flood", request(f"flood{i}-0", [i, *COLD], 300)))
    for _ in range(60):
        harness.step()
    harness.submit(of("calm", request("calm-0", [9, *COLD], 20)))
    assert first_step_of(harness, "calm-0") < 12
    running = Counter(each.request.tenant for each in harness.core.scheduler.running)
    assert running["flood"] >= 1, "only as many as necessary are preempted"
    harness.run()
    assert harness.tokens("calm-0") == expected([9, *COLD], 20)
    for i in range(3):
        assert harness.tokens(f"flood{i}-0") == expected([i, *COLD], 300)
    harness.assert_drained()


def test_nobody_above_its_share_takes_slots_of_another_tenant() -> None:
    harness = Harness(num_slots=400, max_running=8, ahead=False)
    harness.submit(*(of("calm", request(f"calm{i}-0", [9, i, *COLD], 30)) for i in range(2)))
    for _ in range(12):
        harness.step()
    harness.submit(*(of("flood", request(f"flood{i}-0", [i, *COLD], 200)) for i in range(6)))
    preempted: Counter[str] = Counter()
    suspend = harness.core.scheduler.running.suspend

    def noted(sequence: Sequence) -> None:
        preempted[sequence.request.tenant] += 1
        suspend(sequence)

    harness.core.scheduler.running.suspend = noted  # type: ignore[method-assign]
    harness.run()
    assert preempted["flood"] > 0
    assert preempted["calm"] == 0
    harness.assert_drained()


def test_slots_that_a_tenant_holds_count_once() -> None:
    harness = Harness(num_slots=4000, max_running=12, ahead=False)
    for number in range(12):
        prompt = [*COLD[: 20 + number % 3 * 20], number % 2]
        harness.submit(of("ab"[number % 5 == 0], request(f"{number}-0", prompt, 200)))
        for _ in range(12):
            harness.step()
        held: dict[str, set[int]] = {}
        for each in harness.core.scheduler.running:
            assert each.lease is not None, "it runs"
            held.setdefault(each.request.tenant, set()).update(each.lease.slots.tolist())
        counted = harness.core.scheduler.running.slot_shares()._held
        assert counted == {tenant: len(slots) for tenant, slots in held.items()}


tenants = st.tuples(
    st.sampled_from("abc"), st.integers(1, 60), st.integers(1, 60), st.integers(0, 6)
)


@given(
    st.lists(tenants, min_size=1, max_size=14),
    st.integers(120, 260),
    st.sampled_from([0.0, 0.3]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_tenants_that_want_more_slots_than_there_are_all_get_their_tokens(
    arrivals: list[tuple[str, int, int, int]], num_slots: int, quota: float, ahead: bool
) -> None:
    harness = Harness(num_slots, max_running=5, ahead=ahead)
    for number, (tenant, length, max_tokens, gap) in enumerate(arrivals):
        each = request(f"{number}-0", [number % 11] * length, max_tokens)
        share = quota if tenant == "a" else 0.0
        namespace = f"{tenant}/0"
        harness.submit(
            msgspec.structs.replace(each, tenant=tenant, namespace=namespace, kv_quota=share)
        )
        for _ in range(gap):
            if harness.core.has_work:
                harness.step()
    harness.run()
    for number, (_, length, max_tokens, _) in enumerate(arrivals):
        assert harness.tokens(f"{number}-0") == expected([number % 11] * length, max_tokens)
    longest = sum(length + max_tokens for _, length, max_tokens, _ in arrivals)
    assert harness.core.scheduler.totals.preemptions <= longest
    harness.assert_drained()

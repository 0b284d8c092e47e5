"""A step in flight while the next one is planned: the same answers, nothing leaked, nothing shown
too early.

The device here is the host, so a step is computed when it is launched; what the tests see is the
order of planning, launching, landing and committing, and what becomes of rows that turn out to be
in vain.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.engine import flight
from radixserve.engine.counters import STEPS
from radixserve.prefix import Prefix
from radixserve.request import Request
from radixserve.sampling import Samples
from radixserve.tensors.transfer import Download
from tests.engine.content_model import ON_FIRE, expected
from tests.engine.harness import Harness, request

PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.5},
    {"frequency_penalty": -0.5},
]
KINDS: list[dict[str, Any]] = [
    {},
    {"logprobs": 2},
    {"temperature": 6.0, "logprobs": 0},
    {"temperature": 6.0, "top_p": 0.9, "logprobs": 1},
    {"temperature": 6.0, "top_k": 3, "min_p": 0.01},
    {"temperature": 6.0, "logit_bias": {3: 4.0}, "logprobs": 1},
    {"min_tokens": 3, "stop_token_ids": (1, 2, 3), "logprobs": 1},
    {"stop_token_ids": (0, 5)},
    {"prompt_logprobs": 2, "logprobs": 1},
    *[{"temperature": 4.0, "logprobs": 1} | penalty for penalty in PENALTIES],
]


def in_flight(harness: Harness) -> list[str]:
    """Whose rows are in the step that has not landed."""
    step = harness.core._in_flight
    return [work.sequence.request.id for work in step.works] if step else []


def key(tokens: list[int]) -> Prefix:
    return Prefix.of("public", tokens)


# The order of things.


def test_a_step_lands_after_the_next_one_was_launched() -> None:
    harness = Harness(ahead=True)
    harness.submit(request("a", [1, 2, 3], max_tokens=3))
    seen = []
    while harness.core.has_work:
        harness.step()
        seen.append((harness.model.computed_tokens, len(harness.tokens("a")), in_flight(harness)))
    assert seen == [(3, 0, ["a"]), (4, 1, ["a"]), (5, 2, ["a"]), (5, 3, [])]
    assert harness.tokens("a") == expected([1, 2, 3], 3)


def test_in_turn_nothing_stays_in_flight() -> None:
    harness = Harness(ahead=False)
    harness.submit(request("a", [1, 2, 3], max_tokens=3))
    for count in (1, 2, 3):
        harness.step()
        assert (len(harness.tokens("a")), in_flight(harness)) == (count, [])


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_a_draw_that_looks_at_the_tokens_so_far_makes_its_step_synchronous(
    penalty: dict[str, Any],
) -> None:
    harness = Harness(ahead=True)
    harness.submit(
        request("plain", [4, 4], max_tokens=9), request("a", [1, 2, 3], max_tokens=3, **penalty)
    )
    for count in (1, 2, 3):
        harness.step()
        assert (len(harness.tokens("a")), in_flight(harness)) == (count, [])
    harness.step()
    assert in_flight(harness) == ["plain"]


def test_a_prompt_chunk_that_draws_nothing_may_stay_in_flight_whatever_it_will_draw() -> None:
    harness = Harness(max_step_tokens=4, ahead=True)
    harness.submit(request("a", [1] * 9, max_tokens=1, presence_penalty=0.5))
    flying = []
    while harness.core.has_work:
        harness.step()
        flying.append(in_flight(harness))
    assert flying == [["a"], ["a"], []]
    assert harness.tokens("a") == expected([1] * 9, 1)


# Rows in vain.


def test_after_a_stop_token_one_row_is_in_vain_and_nothing_of_it_can_be_found() -> None:
    harness, prompt = Harness(ahead=True), [0, 1, 5]
    said = expected(prompt, 4)
    assert said[3] not in said[:3]
    harness.submit(request("a", prompt, max_tokens=20, stop_token_ids=(said[3],)))
    harness.run()
    assert harness.tokens("a") == said
    assert harness.model.computed_tokens == len(prompt) + 3 + 1
    beyond = [*prompt, *said, *expected([*prompt, *said], 2)]
    assert harness.cache.match(key(beyond)) == len(prompt) + 3
    harness.assert_drained()


def test_a_step_in_vain_does_not_delay_the_lease_of_the_next_request() -> None:
    harness = Harness(num_slots=8, cache=False, ahead=True)
    stop = expected([1, 2, 3], 1)[0]
    harness.submit(request("a", [1, 2, 3], max_tokens=6, stop_token_ids=(stop,)))
    harness.step()
    harness.submit(request("b", [2] * 8, max_tokens=1))
    harness.run()
    assert harness.finish("a") == "stop"
    assert harness.tokens("b") == expected([2] * 8, 1)
    harness.assert_drained()


@pytest.mark.parametrize(
    "prompts", [[[1, 2, 3]], [[1] * 30, [2] * 7, [3, 3]]], ids=["one", "three"]
)
def test_no_row_is_computed_for_a_sequence_known_to_be_at_its_end(prompts: list[list[int]]) -> None:
    harness = Harness(ahead=True)
    harness.submit(
        *[request(f"r{i}", prompt, max_tokens=3 + i) for i, prompt in enumerate(prompts)]
    )
    harness.run()
    assert harness.model.computed_tokens == sum(
        len(prompt) + 2 + i for i, prompt in enumerate(prompts)
    )


def test_a_row_of_a_preempted_sequence_is_dropped_and_computed_again() -> None:
    harness = Harness(num_slots=110, max_step_tokens=64, ahead=True)
    harness.submit(
        request("old", [1] * 20, max_tokens=70), request("young", [2] * 20, max_tokens=70)
    )
    dropped = False
    while harness.core.has_work:
        flying = in_flight(harness)
        before = harness.core.scheduler.totals.preemptions
        harness.step()
        if harness.core.scheduler.totals.preemptions > before:
            dropped |= "young" in flying
    assert dropped
    assert harness.tokens("old") == expected([1] * 20, 70)
    assert harness.tokens("young") == expected([2] * 20, 70)
    harness.assert_drained()


@pytest.mark.parametrize("num_steps", range(1, 8))
def test_an_abort_at_any_moment_drops_the_row_in_flight(num_steps: int) -> None:
    harness = Harness(max_step_tokens=8, ahead=True)
    prompt = [1] * 20
    harness.submit(request("a", prompt, max_tokens=50), request("b", [2], max_tokens=5))
    for _ in range(num_steps):
        harness.step()
    known = harness.tokens("a")
    harness.take(harness.core.abort("a"))
    harness.cache.check()
    found = harness.cache.match(key(prompt + expected(prompt, 20)))
    assert found <= max(len(prompt), len(prompt) + len(known) - 1)
    harness.run()
    assert harness.tokens("a") == known
    assert harness.tokens("b") == expected([2], 5)
    harness.assert_drained()


def test_when_everybody_left_the_step_in_flight_still_lands() -> None:
    harness = Harness(ahead=True)
    harness.submit(request("a", [1, 2, 3], max_tokens=9))
    harness.step()
    harness.take(harness.core.abort("a"))
    assert harness.core.has_work
    assert harness.core.step() == []
    assert not harness.core.has_work
    harness.assert_drained()


# What fails.


def test_a_launch_that_raises_is_taken_back_after_the_step_in_flight_was_committed() -> None:
    harness = Harness(ahead=True)
    harness.submit(
        request("ending", [5], max_tokens=2), request("going on", [1, 2, 3], max_tokens=9)
    )
    harness.step()
    harness.step()
    assert in_flight(harness) == ["ending", "going on"]
    harness.model.fail_calls(2)
    harness.step()
    assert harness.tokens("ending") == expected([5], 2)
    assert harness.finish("ending") == "length"
    assert harness.tokens("going on") == expected([1, 2, 3], 2)
    assert harness.finish("going on") is None
    assert in_flight(harness) == []
    harness.run()
    assert harness.tokens("going on") == expected([1, 2, 3], 9)
    harness.assert_drained()


def test_a_second_try_lands_before_the_next_step_is_planned() -> None:
    harness = Harness(ahead=True)
    harness.submit(request("a", [1, 2, 3], max_tokens=9), request("b", [5], max_tokens=9))
    harness.model.fail_calls(0)
    flying, tokens = [], []
    for _ in range(5):
        harness.step()
        flying.append(in_flight(harness))
        tokens.append((len(harness.tokens("a")), len(harness.tokens("b"))))
    assert flying == [[], [], [], ["a", "b"], ["a", "b"]]
    assert tokens == [(0, 0), (1, 0), (1, 1), (1, 1), (2, 2)]


def test_a_step_that_raises_when_it_lands_takes_back_its_sequences_and_not_the_newcomers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = Harness(ahead=True)
    harness.submit(request("old", [1, 2, 3], max_tokens=9))
    harness.step()
    harness.submit(request("new", [7, 7], max_tokens=3))
    with monkeypatch.context() as broken:
        broken.setattr(Samples, "wait", lambda self: 1 / 0)
        harness.step()
    assert harness.tokens("old") == []
    assert in_flight(harness) == ["old", "new"]
    assert harness.cache.match(key([1, 2, 3])) == 0
    # the step in flight, where the row of `old` is in vain, and the second try of `old`
    harness.step()
    assert harness.tokens("old") == expected([1, 2, 3], 1)
    assert harness.tokens("new") == expected([7, 7], 1)
    assert harness.model.computed_tokens == (3) + (1 + 2) + (3)
    harness.run()
    assert harness.tokens("old") == expected([1, 2, 3], 9)
    assert harness.tokens("new") == expected([7, 7], 3)
    harness.assert_drained()


def test_logits_that_are_not_finite_drop_the_row_in_flight_too() -> None:
    harness = Harness(ahead=True)
    said = expected([1, 1], 3)
    harness.model.poisoned.add((1, 1, *said[:2]))
    harness.submit(request("bad", [1, 1], max_tokens=9), request("good", [2, 2], max_tokens=9))
    harness.run()
    assert harness.tokens("bad") == said[:2]
    assert harness.finish("bad") == "error"
    assert harness.tokens("good") == expected([2, 2], 9)
    assert harness.cache.match(key([1, 1, *said])) == 2
    harness.assert_drained()


# Waiting.


def test_the_host_waits_once_per_step_and_only_when_it_lands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []
    launch, wait = flight.Flight.launch, Download.wait

    def noted_launch(self: flight.Flight, *args: Any, **rest: Any) -> None:
        launch(self, *args, **rest)
        happened.append("launched")

    def noted_wait(self: Download) -> Any:
        happened.append("waited")
        return wait(self)

    monkeypatch.setattr(flight.Flight, "launch", noted_launch)
    monkeypatch.setattr(Download, "wait", noted_wait)
    harness = Harness(ahead=True)
    kinds = [
        kind
        for kind in KINDS
        if "prompt_logprobs" not in kind and not any(p.items() <= kind.items() for p in PENALTIES)
    ]
    harness.submit(
        *[request(f"r{i}", [i, i + 1], max_tokens=5, **kind) for i, kind in enumerate(kinds)]
    )
    harness.run()
    assert happened[:2] == ["launched", "launched"]
    assert (
        happened.count("waited") == happened.count("launched") == harness.core.stats().value(STEPS)
    )


# The same answers.


def alone(one: Request) -> tuple[Any, ...]:
    harness = Harness(cache=False, ahead=False)
    harness.submit(one)
    harness.run()
    return harness.answer(one.id)


arrivals = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=24),
        st.integers(1, 12),
        st.sampled_from(KINDS),
        st.integers(0, 4),  # steps until the next arrives
        st.none() | st.integers(0, 9),  # arrivals until it leaves
    ),
    min_size=1,
    max_size=12,
)


@given(
    arrivals=arrivals,
    num_slots=st.integers(40, 120),
    max_running=st.integers(1, 6),
    max_step_tokens=st.integers(6, 40),
    cache=st.booleans(),
    ahead=st.booleans(),
    speculates=st.booleans(),
    explosions=st.sets(st.integers(0, 30), max_size=2),
)
@settings(max_examples=200, deadline=None)
@pytest.mark.slow
def test_any_draw_gives_the_same_bits_in_turn_and_ahead_whoever_leaves_and_whatever_fails(
    arrivals: list[tuple[list[int], int, dict[str, Any], int, int | None]],
    num_slots: int,
    max_running: int,
    max_step_tokens: int,
    cache: bool,
    ahead: bool,
    speculates: bool,
    explosions: set[int],
) -> None:
    harness = Harness(
        num_slots, max_running, max_step_tokens, cache, ahead=ahead, speculates=speculates
    )
    requests = [
        request(f"r{i}", prompt, count, **({"seed": i} | kind))
        for i, (prompt, count, kind, _, _) in enumerate(arrivals)
    ]
    num_steps = 0
    for i, (one, (_, _, _, gap, _)) in enumerate(zip(requests, arrivals, strict=True)):
        harness.submit(one)
        for _ in range(gap):
            harness.model.fault_of = lambda step, fails=num_steps in explosions: (
                ON_FIRE if fails else None
            )  # type: ignore[misc]
            num_steps += 1
            if harness.core.has_work:
                harness.step()
        for j, (_, _, _, _, patience) in enumerate(arrivals[: i + 1]):
            if patience is not None and i - j == patience:
                harness.take(harness.core.abort(f"r{j}"))
                harness.cache.check()
    harness.model.fail_calls()
    harness.run()
    for one in requests:
        whole, got = alone(one), harness.answer(one.id)
        if got[3] in ("abort", "error"):
            whole = (
                whole[0][: len(got[0])],
                whole[1][: len(got[1])],
                whole[2][: len(got[2])],
                *got[3:],
            )
        assert got == whole
    assert sum(harness.finish(one.id) == "error" for one in requests) == 0 or len(explosions) == 2
    harness.assert_drained()


@given(arrivals=arrivals, max_running=st.integers(1, 6), max_step_tokens=st.integers(6, 40))
@settings(max_examples=60, deadline=None)
def test_ahead_computes_no_more_rows_than_one_for_each_stop_token(
    arrivals: list[tuple[list[int], int, dict[str, Any], int, int | None]],
    max_running: int,
    max_step_tokens: int,
) -> None:
    """With room for all and nothing cached every request computes the same rows, and at most one in
    vain.
    """
    harness = Harness(1000, max_running, max_step_tokens, cache=False, ahead=True)
    for i, (prompt, count, kind, gap, _) in enumerate(arrivals):
        harness.submit(request(f"r{i}", prompt, count, **kind))
        for _ in range(gap):
            harness.step()
    harness.run()
    needed = sum(
        len(prompt) + len(harness.tokens(f"r{i}")) - 1 for i, (prompt, *_) in enumerate(arrivals)
    )
    num_stopped = sum(harness.finish(f"r{i}") == "stop" for i in range(len(arrivals)))
    assert needed <= harness.model.computed_tokens <= needed + num_stopped

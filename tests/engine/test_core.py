"""The engine without its process: what comes out never depends on the cache, the budget, the batch
or who leaves.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.engine.counters import (
    COMPUTED,
    GENERATED_TOKENS,
    PROMPT_TOKENS,
    STEP_SEQUENCES,
    STEP_TOKENS,
)
from radixserve.tiers import DEVICE
from tests.engine.content_model import VOCAB, expected
from tests.engine.harness import Harness, request


@pytest.fixture(params=[False, True], ids=["in turn", "ahead"])
def ahead(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_a_request_gets_its_tokens_and_one_end(ahead: bool) -> None:
    harness = Harness(ahead=ahead)
    harness.submit(request("a", [1, 2, 3], max_tokens=5))
    harness.run()
    assert harness.tokens("a") == expected([1, 2, 3], 5)
    assert harness.finish("a") == "length"
    assert harness.events["a"][0].num_cached == 0
    harness.assert_drained()


def test_the_same_prompt_again_computes_one_token_of_it(ahead: bool) -> None:
    harness = Harness(ahead=ahead)
    prompt = list(range(VOCAB)) * 3
    harness.submit(request("cold", prompt))
    harness.run()
    before = harness.model.computed_tokens
    harness.submit(request("warm", prompt))
    harness.run()
    assert harness.tokens("warm") == harness.tokens("cold")
    assert harness.events["warm"][0].num_cached == len(prompt) - 1
    assert (
        harness.model.computed_tokens - before == 1 + 3
    )  # the prompt's last token, and three of four generated ones


def test_generated_tokens_are_a_prefix_for_the_next_turn(ahead: bool) -> None:
    harness = Harness(ahead=ahead)
    harness.submit(request("turn-1", [5, 6, 7], max_tokens=8))
    harness.run()
    history = [5, 6, 7, *harness.tokens("turn-1"), 1, 2]
    harness.submit(request("turn-2", history))
    harness.run()
    assert harness.events["turn-2"][0].num_cached == 3 + 7  # the last generated token never got K/V
    assert harness.tokens("turn-2") == expected(history, 4)


def test_a_request_may_leave_the_cache_alone(ahead: bool) -> None:
    harness, prompt = Harness(ahead=ahead), [token % VOCAB for token in range(60)]

    def run(name: str, **flags: bool) -> int | None:
        harness.submit(msgspec.structs.replace(request(name, prompt), **flags))
        harness.run()
        assert harness.tokens(name) == expected(prompt, 4)
        return harness.events[name][0].num_cached

    assert run("keeps nothing", keeps_cache=False) == 0
    assert harness.cache.stats().cached == 0
    assert run("finds nothing, keeps all") == 0
    assert run("reads nothing", reads_cache=False) == 0
    assert run("neither", reads_cache=False, keeps_cache=False) == 0
    assert run("reads") == 59
    harness.assert_drained()


def test_nobody_waits_for_a_prefix_that_is_not_kept(ahead: bool) -> None:
    harness, prompt = Harness(ahead=ahead), [token % VOCAB for token in range(60)]
    private = msgspec.structs.replace(request("private", prompt), keeps_cache=False)
    harness.submit(private, request("other", prompt))
    harness.run()
    assert harness.tokens("private") == harness.tokens("other") == expected(prompt, 4)
    assert harness.events["other"][0].num_cached == 0


def test_a_private_request_that_is_preempted_ends_with_the_same_tokens(ahead: bool) -> None:
    harness = Harness(num_slots=110, max_step_tokens=64, ahead=ahead)
    requests = [request(name, [i] * 20, max_tokens=70) for i, name in enumerate("ab")]
    harness.submit(*(msgspec.structs.replace(each, keeps_cache=False) for each in requests))
    harness.run()
    assert harness.core.scheduler.totals.preemptions >= 1
    assert [harness.tokens(name) for name in "ab"] == [expected([i] * 20, 70) for i in range(2)]
    harness.assert_drained()


def test_identical_cold_prompts_are_computed_once(ahead: bool) -> None:
    harness = Harness(max_step_tokens=16, ahead=ahead)
    prompt = [token % VOCAB for token in range(60)]
    harness.submit(*[request(f"r{i}", prompt, max_tokens=1) for i in range(4)])
    harness.run()
    assert (
        harness.model.computed_tokens == len(prompt) + 3
    )  # three followers compute the last token each
    assert [harness.events[f"r{i}"][0].num_cached for i in range(4)] == [0, 59, 59, 59]


def test_a_follower_of_a_running_prefill_lets_others_pass(ahead: bool) -> None:
    harness = Harness(max_step_tokens=32, ahead=ahead)
    prompt = [token % VOCAB for token in range(70)]
    harness.submit(
        request("first", prompt), request("same", prompt), request("other", [9, 9, 9], max_tokens=1)
    )
    for _ in range(3 + ahead):
        harness.step()
    assert harness.finish("other") == "length"
    assert not harness.events["same"]
    harness.run()
    assert harness.tokens("same") == harness.tokens("first") == expected(prompt, 4)


def test_a_follower_goes_on_when_the_leader_is_aborted(ahead: bool) -> None:
    harness = Harness(max_step_tokens=8, ahead=ahead)
    prompt = [token % VOCAB for token in range(64)]
    harness.submit(request("leader", prompt), request("follower", prompt))
    for _ in range(2 + ahead):
        harness.step()
    harness.take(harness.core.abort("leader"))
    harness.run()
    assert harness.finish("leader") == "abort"
    assert harness.tokens("follower") == expected(prompt, 4)
    assert harness.events["follower"][0].num_cached == 16


def test_decodes_go_on_while_a_long_prompt_is_prefilled(ahead: bool) -> None:
    harness = Harness(max_step_tokens=8, ahead=ahead)
    harness.submit(request("short", [1], max_tokens=6))
    harness.step()
    harness.submit(request("long", [2] * 100, max_tokens=1))
    for _ in range(5 + ahead):
        harness.step()
    assert len(harness.tokens("short")) == 6
    assert not harness.events["long"]
    harness.run()
    assert harness.tokens("long") == expected([2] * 100, 1)


def test_under_pressure_the_youngest_is_preempted_and_ends_with_the_same_tokens(
    ahead: bool,
) -> None:
    harness = Harness(num_slots=110, max_step_tokens=64, ahead=ahead)
    harness.submit(
        request("old", [1] * 20, max_tokens=70), request("young", [2] * 20, max_tokens=70)
    )
    harness.run()
    assert harness.core.scheduler.totals.preemptions >= 1
    assert harness.tokens("old") == expected([1] * 20, 70)
    assert harness.tokens("young") == expected([2] * 20, 70)
    told = [seconds for event in harness.events["young"] for seconds in event.preempted]
    assert len(told) == harness.core.scheduler.totals.preemptions
    assert not any(event.preempted for event in harness.events["old"])
    assert [
        event.num_cached for event in harness.events["young"] if event.num_cached is not None
    ] == [0]
    harness.assert_drained()


def test_a_request_larger_than_the_whole_budget_is_refused_at_once(ahead: bool) -> None:
    harness = Harness(num_slots=32, ahead=ahead)
    harness.submit(request("huge", [1] * 30, max_tokens=4))
    assert harness.finish("huge") == "error"
    assert "33 slots" in str(harness.events["huge"][-1].error)
    harness.submit(request("fits", [1] * 30, max_tokens=3))
    harness.run()
    assert harness.tokens("fits") == expected([1] * 30, 3)


def test_a_stop_token_ends_a_request_and_is_its_last_token(ahead: bool) -> None:
    harness = Harness(ahead=ahead)
    stop = expected([3, 4], 3)[2]
    harness.submit(request("a", [3, 4], max_tokens=20, stop_token_ids=(stop,)))
    harness.run()
    assert harness.tokens("a") == expected([3, 4], 20, (stop,))
    assert harness.finish("a") == "stop"
    assert harness.events["a"][-1].stop_token_id == stop


def test_logits_that_are_not_finite_fail_one_request_and_nothing_of_it_is_cached(
    ahead: bool,
) -> None:
    harness = Harness(max_step_tokens=64, ahead=ahead)
    harness.model.poisoned.add((1, 1, 1, 1))
    harness.submit(request("bad", [1, 1, 1, 1]), request("good", [2, 2, 2, 2]))
    harness.run()
    assert harness.finish("bad") == "error"
    assert harness.tokens("bad") == []
    assert harness.tokens("good") == expected([2, 2, 2, 2], 4)
    harness.model.poisoned.clear()
    harness.submit(request("again", [1, 1, 1, 1]))
    harness.run()
    assert harness.events["again"][0].num_cached == 0
    assert harness.tokens("again") == expected([1, 1, 1, 1], 4)


def test_a_request_resumed_with_sent_tokens_goes_on_at_the_next_one(ahead: bool) -> None:
    harness = Harness(ahead=ahead)
    whole = expected([4, 5, 6], 9)
    harness.take(harness.core.submit(request("resumed", [4, 5, 6], max_tokens=9), whole[:4]))
    harness.run()
    assert harness.tokens("resumed") == whole[4:]
    assert harness.finish("resumed") == "length"


def test_a_resumed_request_does_not_tell_its_start_again_nor_computes_its_prompt_logprobs(
    ahead: bool,
) -> None:
    harness, prompt = Harness(ahead=ahead), [token % VOCAB for token in range(30)]
    harness.submit(request("warm-up", prompt, max_tokens=1))
    harness.run()
    asked = request("resumed", prompt, max_tokens=9, prompt_logprobs=2)
    harness.take(harness.core.submit(asked, expected(prompt, 4)))
    harness.run()
    assert harness.tokens("resumed") == expected(prompt, 9)[4:]
    told = [
        (event.num_cached, event.queue_seconds, event.prompt_logprobs)
        for event in harness.events["resumed"]
    ]
    assert set(told) == {(None, None, None)}
    assert harness.core.scheduler.totals.prompt_tokens[DEVICE] > 0


def test_the_end_of_a_request_tells_its_cached_tokens_only_if_no_token_did(ahead: bool) -> None:
    harness = Harness(max_step_tokens=8, ahead=ahead)
    harness.submit(request("no token", [1] * 20), request("some", [2, 3], max_tokens=50))
    harness.step()
    harness.take(harness.core.abort("no token"))
    for _ in range(6):
        harness.step()
    harness.take(harness.core.abort("some"))
    assert harness.tokens("some")
    assert [harness.events[name][-1].num_cached for name in ("no token", "some")] == [0, None]


@pytest.mark.parametrize("num_sent", [4, 5])
def test_a_request_resumed_with_all_its_tokens_sent_has_nothing_to_do(
    num_sent: int, ahead: bool
) -> None:
    harness = Harness(ahead=ahead)
    harness.take(
        harness.core.submit(request("a", [1, 2, 3], max_tokens=4), expected([1, 2, 3], num_sent))
    )
    harness.run()
    assert harness.tokens("a") == []
    assert harness.finish("a") == "length"
    harness.assert_drained()


def test_prompt_logprobs_cover_every_prompt_token_once_although_the_prompt_is_cached_and_chunked(
    ahead: bool,
) -> None:
    harness = Harness(max_step_tokens=8, ahead=ahead)
    prompt = [token % VOCAB for token in range(30)]
    harness.submit(request("warm-up", prompt))
    harness.run()
    harness.submit(request("echo", prompt, max_tokens=1, prompt_logprobs=2))
    harness.run()
    found = harness.events["echo"][0].prompt_logprobs
    assert found is not None
    assert [each.token_id for each in found] == prompt[1:]
    assert all(len(each.top) == 2 for each in found)
    assert harness.events["echo"][0].num_cached == 0


@pytest.mark.parametrize("state", ["waiting", "prefilling", "decoding", "preempted"])
def test_abort_in_every_state_stops_work_at_once_and_gives_everything_back(
    state: str, ahead: bool
) -> None:
    harness = Harness(max_running=1, max_step_tokens=8, ahead=ahead)
    if state == "waiting":
        harness.submit(request("in front", [7] * 30))
    harness.submit(request("a", [1] * 20, max_tokens=50))
    for _ in range({"waiting": 1, "prefilling": 1}.get(state, 6)):
        harness.step()
    if state == "preempted":
        harness.core.scheduler.running.preempt(next(iter(harness.core.scheduler.running)))
    harness.take(harness.core.abort("a"))
    assert harness.finish("a") == "abort"
    assert harness.core.abort("a") == []
    computed = harness.model.computed_tokens
    harness.run()
    others = 26 if state == "waiting" else 0  # of the request in front
    assert harness.model.computed_tokens - computed <= others
    harness.run()
    harness.assert_drained()


def test_stats_describe_the_steps_since_the_last_report(ahead: bool) -> None:
    harness = Harness(ahead=ahead)
    harness.submit(request("a", [1, 2, 3], max_tokens=3))
    harness.run()
    stats = harness.core.stats()
    assert stats.seen(STEP_TOKENS) == [3, 1, 1]
    assert stats.seen(STEP_SEQUENCES) == [1, 1, 1]
    assert (stats.value(PROMPT_TOKENS, COMPUTED), stats.total(PROMPT_TOKENS)) == (3, 3)
    assert stats.value(GENERATED_TOKENS) == 3
    assert harness.core.stats().seen(STEP_TOKENS) == []


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=24)
arrivals = st.lists(
    st.tuples(prompts, st.integers(1, 12), st.integers(0, 6), st.none() | st.integers(0, 8)),
    min_size=1,
    max_size=12,
)


@given(
    arrivals=arrivals,
    num_slots=st.integers(40, 120),
    max_running=st.integers(1, 5),
    max_step_tokens=st.integers(5, 40),
    cache=st.booleans(),
    ahead=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_answers_depend_on_nothing_but_the_request(
    arrivals: list[tuple[list[int], int, int, int | None]],
    num_slots: int,
    max_running: int,
    max_step_tokens: int,
    cache: bool,
    ahead: bool,
) -> None:
    """Requests over two or three distinct tokens arrive a few steps apart, some leave; the rest
    gets its tokens.
    """
    harness = Harness(num_slots, max_running, max_step_tokens, cache, ahead=ahead)
    leaving: dict[str, int] = {}
    for i, (prompt, max_tokens, gap, patience) in enumerate(arrivals):
        harness.submit(request(f"r{i}", prompt, max_tokens))
        if patience is not None:
            leaving[f"r{i}"] = patience
        for _ in range(gap):
            if harness.core.has_work:
                harness.step()
        for name in [name for name, left in leaving.items() if left == 0]:
            harness.take(harness.core.abort(name))
            del leaving[name]
        leaving = {name: left - 1 for name, left in leaving.items()}
    harness.run()
    for i, (prompt, max_tokens, _, _) in enumerate(arrivals):
        whole = expected(prompt, max_tokens)
        got = harness.tokens(f"r{i}")
        assert got == (whole if harness.finish(f"r{i}") == "length" else whole[: len(got)])
        assert harness.finish(f"r{i}") in ("length", "abort")
    harness.assert_drained()

"""The replay against a fake server: what it sends and when, what it counts, and how clients
misbehave.
"""

from __future__ import annotations

import dataclasses

import pytest

from radixserve.loadtest.check import check, comparable
from radixserve.loadtest.client import Answer
from radixserve.loadtest.dialect import DIALECTS
from radixserve.loadtest.load import Load
from radixserve.loadtest.measures import Summary, summarise
from radixserve.loadtest.replay import Run, replay
from radixserve.loadtest.scrape import Sample, parse, scraping
from radixserve.loadtest.session import Session, Turn
from radixserve.loadtest.target import CannotStart, Target, base_url
from radixserve.loadtest.workload import Workload, load_workload
from tests.fake_openai import FakeOpenAI

CLOSED = Load("closed", 1, {})


async def run_against(
    fake: FakeOpenAI, workload: str, *changes: str, dialect: str = "openai"
) -> tuple[Run, Summary]:
    run = Run(load_workload(workload, changes))
    async with fake.serve() as url:
        model = "" if DIALECTS[dialect].lists_models else "fake"
        target = Target(base_url(url), model, timeout_seconds=20.0, dialect=DIALECTS[dialect])
        await replay(run, target, lambda record: None)
    return run, summarise(run)


def one(turn: Turn, load: Load = CLOSED) -> Run:
    return Run(Workload("w", 1, load, [Session("s", (), (turn,))]))


# -- the loop
# --------------------------------------------------------------------------------------------------


async def test_the_second_turn_sends_the_first_answer_back() -> None:
    fake = FakeOpenAI()
    run, summary = await run_against(fake, "shared_system")
    assert (summary.requests, summary.answered, summary.errors, summary.unsent) == (64, 64, {}, 0)
    seconds = [body["messages"] for body in fake.bodies if len(body["messages"]) > 2]
    assert len(seconds) == 32
    assert [message["role"] for message in seconds[0]] == ["system", "user", "assistant", "user"]
    assert len(seconds[0][2]["content"].split()) == 32
    assert summary.tokens_per_second == pytest.approx(64 * 32 / run.wall_seconds)
    assert summary.hit_share is not None
    assert summary.hit_share > 0.88
    assert all(record.ttft and len(record.inter_token) == 31 for record in run.records)


async def test_no_more_sessions_run_at_a_time_than_there_are_clients() -> None:
    fake = FakeOpenAI(word_seconds=0.0001)
    await run_against(fake, "shared_system", "load.clients=3")
    assert fake.most_running == 3


async def test_every_mixed_request_ends_as_expected() -> None:
    _, summary = await run_against(FakeOpenAI(), "mixed")
    assert (summary.requests, summary.errors, summary.left) == (500, {}, 0)
    assert summary.answered + summary.refused == 500
    assert summary.refused > 30


async def test_clients_that_leave_are_counted_and_are_no_errors() -> None:
    fake = FakeOpenAI(word_seconds=0.002)
    _, summary = await run_against(fake, "mixed", "load.clients=32", "load.leave=0.2")
    assert summary.errors == {}
    assert summary.answered + summary.refused + summary.left == 500
    assert 30 < summary.left < 120
    assert 0 < fake.gone <= summary.left
    assert fake.running == 0


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("overloaded", "http 503"),
        ("cut", "incomplete answer"),
        ("error in stream", "error in answer"),
        ("nameless error", "not an answer"),
        ("binary error", "http 500"),
    ],
)
async def test_failures_are_counted_by_kind_and_end_their_session(fault: str, kind: str) -> None:
    _, summary = await run_against(FakeOpenAI(fault), "shared_system")
    assert summary.errors == {kind: 32}
    assert (summary.answered, summary.unsent) == (0, 32)


async def test_an_answer_where_a_refusal_is_right_is_an_error() -> None:
    turn = Turn("bad", "chat", "hello", {"max_tokens": 1}, expect=400)
    run = one(turn)
    async with FakeOpenAI().serve() as url:
        await replay(run, Target(base_url(url)), lambda record: None)
    assert summarise(run).errors == {"status 200 instead of 400": 1}


async def test_a_request_that_hangs_is_a_timeout() -> None:
    turn = Turn("slow", "chat", "hello", {"max_tokens": 1})
    run = one(turn)
    async with FakeOpenAI(word_seconds=30.0).serve() as url:
        await replay(run, Target(base_url(url), timeout_seconds=0.05), lambda record: None)
    assert summarise(run).errors == {"timeout": 1}


async def test_a_server_that_does_not_report_cached_tokens_has_no_hit_share() -> None:
    _, summary = await run_against(FakeOpenAI("no cached_tokens"), "shared_system")
    assert (summary.hit_share, summary.answered) == (None, 64)


async def test_a_model_that_is_not_served_is_refused_before_anything_is_sent() -> None:
    fake, run = FakeOpenAI(), Run(load_workload("shared_system"))
    async with fake.serve() as url:
        with pytest.raises(CannotStart, match="does not serve other; it has: fake"):
            await replay(run, Target(base_url(url), model="other"), lambda record: None)
    assert fake.bodies == []


async def test_a_server_whose_list_says_nothing_is_not_asked_for_it() -> None:
    transformers = DIALECTS["transformers"]
    fake, run = FakeOpenAI(), Run(load_workload("shared_system", ["users=1"]))
    async with fake.serve() as url:
        await replay(run, Target(base_url(url), "fake", dialect=transformers), lambda record: None)
        assert summarise(run).answered == 8
        with pytest.raises(CannotStart, match="name one with --model"):
            await replay(run, Target(base_url(url), dialect=transformers), lambda record: None)
    assert fake.lists == 0
    with pytest.raises(CannotStart, match=r"no server at http://127\.0\.0\.1:1/v1"):
        await replay(
            run, Target("http://127.0.0.1:1/v1", "fake", dialect=transformers), lambda record: None
        )


# -- times
# --------------------------------------------------------------------------------------------------


async def test_only_streams_have_a_first_token_and_choices_are_timed_one_by_one() -> None:
    run, _ = await run_against(FakeOpenAI(), "mixed", "requests=80")
    answered = [record for record in run.records if record.answered]
    streamed = [
        record for record in answered if "streamed" in record.kind or "stop strings" in record.kind
    ]
    both = [record for record in streamed if "n=2" in record.kind]
    assert [
        record for record in answered if record.kind == "chat" and (record.ttft or record.tpot)
    ] == []
    assert all(record.ttft for record in streamed)
    assert {record.choices for record in both} == {2}
    assert {len(record.inter_token) for record in both} == {22}  # 11 in each of them
    for record in both:
        assert record.ttft is not None
        assert record.tpot == pytest.approx((record.e2e - record.ttft) / 11)


async def test_an_answer_ends_with_its_last_token_and_not_with_a_late_usage() -> None:
    words = {"max_tokens": 5, "stream": True}
    run = one(Turn("k", "chat", "hello", words, stream=True))
    fake = FakeOpenAI(word_seconds=0.02, usage_seconds=1.0)
    async with fake.serve() as url:
        await replay(run, Target(base_url(url)), lambda record: None)
    (record,) = run.records
    assert record.answered
    assert record.completion_tokens == 5
    assert record.ttft is not None
    assert record.e2e == pytest.approx(record.ttft + sum(record.inter_token))
    assert record.e2e < 0.9
    assert record.tpot is not None
    assert record.tpot == pytest.approx(sum(record.inter_token) / 4)
    assert run.wall_seconds > 1.0


def test_reasoning_and_tool_calls_are_tokens_too() -> None:
    answer = Answer()
    for part in ({"role": "assistant", "content": ""}, {"reasoning_content": "hm"}):
        answer.take({"choices": [{"index": 0, "delta": part}]})
    assert len(answer.arrivals[0]) == 1
    call = {"index": 0, "function": {"name": "f", "arguments": ""}}
    answer.take({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
    answer.take({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    assert len(answer.arrivals[0]) == 2
    assert answer.texts[0] == ""


# -- check
# --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("fault", [None, "depends on the batch"])
async def test_check_finds_answers_that_depend_on_the_load(fault: str | None) -> None:
    run, reasons = Run(load_workload("shared_system")), list[str | None]()
    async with FakeOpenAI(fault, word_seconds=0.0001).serve() as url:
        target = Target(base_url(url))
        await replay(run, target, lambda record: None)
        await check([run], target, lambda sent, reason: reasons.append(reason))
    assert len(reasons) == len(comparable([run])) == 64
    assert set(reasons) - {None} == ({"another answer when sent alone"} if fault else set())


async def test_a_check_without_a_server_ends_at_once() -> None:
    run, _ = await run_against(FakeOpenAI(), "shared_system", "users=1")
    with pytest.raises(CannotStart, match=r"no server at http://127\.0\.0\.1:1/v1 any more"):
        await check([run], Target("http://127.0.0.1:1/v1"), lambda sent, reason: None)


async def test_only_greedy_answers_are_compared() -> None:
    run, _ = await run_against(FakeOpenAI(), "mixed")
    assert {sent.body["temperature"] for sent in comparable([run])} == {0}


# -- load shapes and misbehaviour
# -----------------------------------------------------------------------------------


async def test_an_open_loop_does_not_wait_for_answers_and_counts_from_the_schedule() -> None:
    fake = FakeOpenAI(word_seconds=0.05)
    run, summary = await run_against(
        fake,
        "random",
        "groups=20",
        "load.shape=burst",
        "load.burst=10",
        "load.period_seconds=0.1",
        "body.max_tokens=4",
    )
    assert fake.most_running == 20
    assert summary.errors == {}
    assert sorted({record.due for record in run.records}) == [0.0, 0.1]
    assert all(record.started >= record.due and record.e2e >= 0.2 for record in run.records)
    assert max(record.in_flight for record in run.records) == 20


async def test_a_late_start_counts_against_the_answer() -> None:
    run = Run(load_workload("random", ["groups=1", "load.shape=schedule", "start_seconds=0.0001"]))
    run.workload.sessions[0] = dataclasses.replace(
        run.workload.sessions[0], at=-5.0
    )  # as if the loop had been held up
    async with FakeOpenAI().serve() as url:
        await replay(run, Target(base_url(url)), lambda record: None)
    (record,) = run.records
    assert record.ttft is not None
    assert record.e2e > record.ttft > 5.0


async def test_the_turns_of_a_session_pause_between_each_other() -> None:
    run, _ = await run_against(
        FakeOpenAI(), "chat", "groups=1", "turns=3", "load.pause_seconds=0.05"
    )
    first, second, third = run.records
    assert second.due >= first.due + first.e2e + 0.05
    assert third.started >= third.due


async def test_slow_readers_are_counted_and_not_timed() -> None:
    run, summary = await run_against(
        FakeOpenAI(), "random", "groups=3", "load.slow=1", "body.max_tokens=3"
    )
    assert (summary.slow, summary.answered, summary.latency.answers) == (3, 3, 0)
    assert summary.latency.e2e is None
    assert all(record.e2e >= 0.4 for record in run.records)


@pytest.mark.parametrize(("fault", "wrong"), [(None, 0), ("falls over garbage", 1)])
async def test_garbage_has_to_be_refused_as_the_clients_fault(
    fault: str | None, wrong: int
) -> None:
    _, summary = await run_against(FakeOpenAI(fault), "random", "load.garbage=0.5")
    refused, failed = summary.refused, summary.errors.get("http 500 to garbage", 0)
    assert bool(failed) == bool(wrong)
    assert refused + failed > 10
    assert summary.answered + refused + failed == 48


# -- dialects and metrics
# -------------------------------------------------------------------------------------------


async def test_a_dialect_leaves_out_what_the_server_refuses_and_says_so() -> None:
    fake = FakeOpenAI()
    run, summary = await run_against(fake, "mixed", "requests=60", dialect="transformers")
    assert not [body for body in fake.bodies if body.keys() & DIALECTS["transformers"].refused]
    assert {"stream_options", "n", "logprobs"} <= run.left_out.keys()
    assert summary.requests == 60


async def test_token_ids_are_sent_as_ids_or_refused_before_anything_is_sent() -> None:
    fake = FakeOpenAI()
    await run_against(fake, "trace", "requests=3", "blocks=ids", "speed=1000")
    assert all(isinstance(token, int) for body in fake.bodies for token in body["prompt"])
    with pytest.raises(CannotStart, match="takes no prompts of token ids"):
        await run_against(FakeOpenAI(), "trace", "requests=3", "blocks=ids", dialect="transformers")


async def test_the_servers_metrics_are_read_beside_the_load() -> None:
    samples: list[Sample] = []
    async with FakeOpenAI().serve() as url:
        target = Target(base_url(url))
        async with scraping(target, samples):
            await replay(Run(load_workload("shared_system")), target, lambda record: None)
    assert (samples[0].running, samples[-1].counters["fake_requests_total"]) == (0, 64)


async def test_a_server_without_metrics_gives_no_samples() -> None:
    samples: list[Sample] = []
    async with FakeOpenAI("no metrics").serve() as url, scraping(Target(base_url(url)), samples):
        pass
    assert samples == []


@pytest.mark.parametrize(
    ("waiting", "running"),
    [
        ("radixserve_requests_waiting", "radixserve_requests_running"),
        ("vllm:num_requests_waiting", "vllm:num_requests_running"),
        ("llamacpp:requests_deferred", "llamacpp:requests_processing"),
        ("sglang:num_queue_reqs", "sglang:num_running_reqs"),
    ],
)
def test_queues_are_found_under_the_names_that_servers_give_them(
    waiting: str, running: str
) -> None:
    sample = parse(
        f'# TYPE {waiting} gauge\n{waiting} 3\n# TYPE {running} gauge\n{running}{{a="b"}} 4\n', 1.5
    )
    assert sample == Sample(1.5, 3.0, 4.0, {})


# -- answers
# --------------------------------------------------------------------------------------------------


def test_a_stream_without_a_finish_reason_is_not_finished() -> None:
    answer = Answer()
    answer.take({"choices": [{"index": 1, "delta": {"content": "a"}}], "usage": None})
    answer.take(
        {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": "stop"}]}
    )
    assert (answer.ordered_texts(), answer.finished, list(answer.arrivals)) == (["", "a"], {0}, [1])


def test_cached_tokens_are_taken_from_where_a_server_puts_them() -> None:
    answers = [Answer(), Answer(), Answer()]
    answers[0].take({"usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}}})
    answers[1].take({"usage": {"prompt_tokens": 9}, "timings": {"cache_n": 5}})
    answers[2].take({"usage": {"prompt_tokens": 9, "prompt_tokens_details": None}})
    assert [answer.cached_tokens for answer in answers] == [0, 5, None]

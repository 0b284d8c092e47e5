"""The load test against a fake server: what it sends, counts, compares, and says when things go wrong."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtest import cli
from loadtest.check import check, comparable
from loadtest.client import Answer
from loadtest.prose import prose
from loadtest.record import Record, RecordFile
from loadtest.replay import CannotStart, Run, Target, base_url, replay
from loadtest.report import Quantiles, Summary, quantiles, summarise
from loadtest.workload import Conversation, Turn, Workload, WorkloadError, load_workload
from tests.fake_openai import FakeOpenAI

ROOT = Path(__file__).parent.parent


async def run_against(fake: FakeOpenAI, workload: str, clients: int = 8, leave: float = 0.0) -> tuple[Run, Summary]:
    run = Run(load_workload(workload), clients, leave)
    async with fake.serve() as url:
        await replay(run, Target(base_url(url), timeout_seconds=20.0), lambda record: None)
    return run, summarise(run)


@contextmanager
def fake_process(fault: str = "") -> Iterator[str]:
    command = [sys.executable, "-m", "tests.fake_openai"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"FAKE_FAULT": fault}
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split("listening on ")[1].strip()
        finally:
            process.kill()


def test_loadtest_imports_nothing_of_the_server() -> None:
    for path in sorted((ROOT / "loadtest").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "radixserve"], path


# -- workloads ------------------------------------------------------------------------------------------------------


def test_prose_depends_on_its_key_only_and_has_the_words_asked_for() -> None:
    assert prose(300, 1, "a") == prose(300, 1, "a") != prose(300, 1, "b")
    assert [len(prose(n, "x").split()) for n in (1, 9, 300)] == [1, 9, 300]


def test_shared_system_is_64_chat_requests_over_4_system_prompts() -> None:
    workload = load_workload("shared_system")
    assert workload.num_requests == 64
    assert len({conversation.system for conversation in workload.conversations}) == 4
    assert {len(conversation.turns) for conversation in workload.conversations} == {2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed = 1": "seed = true"}, "seed must be of type int, not True"),
        ({"users = 8": "users = 0"}, r"\[shared_system\]: users must be at least 1, not 0"),
        ({"turns = 2": ""}, "turns is missing"),
        ({"turns = 2": "turns = 2\nspeed = 3"}, "unknown field speed"),
        ({"[shared_system": "[other"}, "exactly one of the tables shared_system, mixed is needed"),
        ({"seed = 1": "seed ="}, "is not TOML"),
    ],
)
def test_a_wrong_workload_is_refused_by_field(tmp_path: Path, change: dict[str, str], message: str) -> None:
    text = (ROOT / "loadtest/workloads/shared_system.toml").read_text()
    for old, new in change.items():
        text = text.replace(old, new)
    path = tmp_path / "w.toml"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=message):
        load_workload(str(path))


# -- the loop -------------------------------------------------------------------------------------------------------


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


async def test_no_more_conversations_run_at_a_time_than_there_are_clients() -> None:
    fake = FakeOpenAI(word_seconds=0.0001)
    await run_against(fake, "shared_system", clients=3)
    assert fake.most_running == 3


async def test_every_mixed_request_ends_as_expected() -> None:
    _, summary = await run_against(FakeOpenAI(), "mixed", clients=16)
    assert (summary.requests, summary.errors, summary.left) == (500, {}, 0)
    assert summary.answered + summary.refused == 500
    assert summary.refused > 30


async def test_clients_that_leave_are_counted_and_are_no_errors() -> None:
    fake = FakeOpenAI(word_seconds=0.002)
    _, summary = await run_against(fake, "mixed", clients=32, leave=0.2)
    assert summary.errors == {}
    assert summary.answered + summary.refused + summary.left == 500
    assert 30 < summary.left < 120
    assert 0 < fake.gone <= summary.left
    assert fake.running == 0


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("overloaded", "http 503"), ("cut", "incomplete answer"), ("error in stream", "error in answer")],
)
async def test_failures_are_counted_by_kind_and_end_their_conversation(fault: str, kind: str) -> None:
    _, summary = await run_against(FakeOpenAI(fault), "shared_system")
    assert summary.errors == {kind: 32}
    assert (summary.answered, summary.unsent) == (0, 32)


async def test_an_answer_where_a_refusal_is_right_is_an_error() -> None:
    turn = Turn("bad", "chat", "hello", {"max_tokens": 1}, expect=400)
    run = Run(Workload("w", 1, 1, [Conversation("c", None, (turn,))]), clients=1)
    async with FakeOpenAI().serve() as url:
        await replay(run, Target(base_url(url)), lambda record: None)
    assert summarise(run).errors == {"status 200 instead of 400": 1}


async def test_a_request_that_hangs_is_a_timeout() -> None:
    turn = Turn("slow", "chat", "hello", {"max_tokens": 1})
    run = Run(Workload("w", 1, 1, [Conversation("c", None, (turn,))]), clients=1)
    async with FakeOpenAI(word_seconds=30.0).serve() as url:
        await replay(run, Target(base_url(url), timeout_seconds=0.05), lambda record: None)
    assert summarise(run).errors == {"timeout": 1}


async def test_a_server_that_does_not_report_cached_tokens_has_no_hit_share() -> None:
    _, summary = await run_against(FakeOpenAI("no cached_tokens"), "shared_system")
    assert (summary.hit_share, summary.answered) == (None, 64)


async def test_a_model_that_is_not_served_is_refused_before_anything_is_sent() -> None:
    fake, run = FakeOpenAI(), Run(load_workload("shared_system"), 1)
    async with fake.serve() as url:
        with pytest.raises(CannotStart, match="does not serve other; it has: fake"):
            await replay(run, Target(base_url(url), model="other"), lambda record: None)
    assert fake.bodies == []


# -- check ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [None, "depends on the batch"])
async def test_check_finds_answers_that_depend_on_the_load(fault: str | None) -> None:
    run, checked = Run(load_workload("shared_system"), 8), []
    async with FakeOpenAI(fault, word_seconds=0.0001).serve() as url:
        target = Target(base_url(url))
        await replay(run, target, lambda record: None)
        differences = await check(run, target, lambda: checked.append(1))
    assert len(checked) == len(comparable(run)) == 64
    assert bool(differences) == (fault is not None)


async def test_only_greedy_answers_are_compared() -> None:
    run, _ = await run_against(FakeOpenAI(), "mixed", clients=16)
    assert {sent.body["temperature"] for sent in comparable(run)} == {0}


# -- records, numbers, answers --------------------------------------------------------------------------------------


def test_quantiles_are_nearest_ranks() -> None:
    assert quantiles(range(1, 101)) == Quantiles(50, 90, 99)
    assert quantiles([3.0]) == Quantiles(3.0, 3.0, 3.0)
    assert quantiles([]) is None


def test_a_full_disk_ends_the_record_file_and_not_the_run() -> None:
    class FullDisk:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    file = RecordFile(None)
    file._file = FullDisk()  # type: ignore[assignment]
    with file:
        file.write(Record("c", 1, "k", 0.0))
        file.write(Record("c", 2, "k", 0.0))
    assert file.error is not None


def test_a_stream_without_a_finish_reason_is_not_finished() -> None:
    answer = Answer()
    answer.take({"choices": [{"index": 1, "delta": {"content": "a"}}], "usage": None})
    answer.take({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": "stop"}]})
    assert (answer.ordered_texts(), answer.finished, len(answer.arrivals)) == (["", "a"], {0}, 1)


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_command_reports_writes_and_exits_with_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, numbers = tmp_path / "r.jsonl", tmp_path / "s.json"
    options = ["shared_system", "--check", "--quiet", "--out", str(out), "--summary", str(numbers)]
    with fake_process() as url:
        assert cli.main([*options, "--url", url]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == json.loads(numbers.read_text())["answered"] == 64
    assert "64 sent: 64 answered" in capsys.readouterr().out


def test_an_unreachable_server_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--url", "http://127.0.0.1:1", "--quiet"]) == 2
    assert "no server at http://127.0.0.1:1/v1" in capsys.readouterr().err


def test_an_unknown_workload_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nothing", "--quiet"]) == 2
    assert "there are: mixed, shared_system" in " ".join(capsys.readouterr().err.split())


def test_a_server_that_dies_in_the_middle_leaves_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.jsonl"
    with fake_process("exit") as url:
        assert cli.main(["shared_system", "--quiet", "--url", url, "--out", str(out)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "the server stopped taking connections" in shown
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert sum(record["error"] is None for record in records) >= 12
    assert {record["error"] for record in records} == {None, "connection lost", "no connection"}


def test_figures_measures_both_servers_and_stops_them(tmp_path: Path) -> None:
    fake = f"import sys; sys.argv = ['fake']; sys.path.insert(0, {str(ROOT)!r}); import runpy; "
    script = tmp_path / "serve.py"
    script.write_text(fake + "runpy.run_module('tests.fake_openai', run_name='__main__')\n")
    command = [sys.executable, str(ROOT / "benchmarks/figures.py"), "--command", sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines()[2:]] == ["cache", "--no-cache", "ratio"]


def test_interrupting_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(run: Run, *others: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_replay", interrupted)
    assert cli.main(["--quiet", "--summary", str(tmp_path / "s.json")]) == 130
    assert json.loads((tmp_path / "s.json").read_text())["unsent"] == 64
    asyncio.set_event_loop(None)

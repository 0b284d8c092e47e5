"""The command: what it writes and says, and with which code it ends when something is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from radixserve.cli import main as radixserve
from radixserve.loadtest import cli, tour
from radixserve.loadtest.dialect import DIALECTS
from radixserve.loadtest.load import NEEDS
from radixserve.loadtest.options import KEY_VARIABLES, parser
from radixserve.loadtest.workload import names
from tests.fake_openai import FakeOpenAI
from tests.signals import usual_signals

ROOT = Path(__file__).parent.parent.parent


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


def records_in(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command_reports_writes_and_exits_with_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, numbers, html = tmp_path / "r.jsonl", tmp_path / "s.json", tmp_path / "r.html"
    files = ["--out", str(out), "--summary", str(numbers), "--html", str(html)]
    with fake_process() as url:
        options = [
            "bench",
            "shared_system",
            "--check",
            "--phases",
            "cold,warm",
            "--slo",
            "ttft=5",
            "--url",
            url,
        ]
        assert radixserve([*options, *files]) == 0
    assert [record["phase"] for record in records_in(out)] == ["cold"] * 64 + ["warm"] * 64
    phases = json.loads(numbers.read_text())["phases"]
    assert [phase["summary"]["answered"] for phase in phases.values()] == [64, 64]
    assert phases["warm"]["summary"]["hit_share"] > phases["cold"]["summary"]["hit_share"] > 0.88
    shown = capsys.readouterr().out
    assert "64 sent: 64 answered" in shown
    assert "goodput" in shown
    assert html.read_text().startswith("<!doctype html>")


def test_without_a_terminal_progress_is_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("radixserve.loadtest.progress.PLAIN_SECONDS", 0.0)
    with fake_process() as url:
        assert cli.main(["shared_system", "--set", "users=1", "--url", url]) == 0
    assert "cold: 8/8 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "flags", "sent"),
    [
        ({}, [], None),
        ({"OPENAI_API_KEY": "theirs"}, [], "Bearer theirs"),
        ({"OPENAI_API_KEY": "theirs", "RADIXSERVE_API_KEY": "ours"}, [], "Bearer ours"),
        ({"OPENAI_API_KEY": "theirs", "RADIXSERVE_API_KEY": ""}, [], "Bearer theirs"),
        ({"RADIXSERVE_API_KEY": "ours"}, ["--api-key", "sk-mine"], "Bearer sk-mine"),
    ],
)
async def test_the_key_is_the_flag_or_a_variable_and_no_file_shows_it(
    variables: dict[str, str],
    flags: list[str],
    sent: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    fake, numbers = FakeOpenAI(), tmp_path / "s.json"
    async with fake.serve() as url:
        options = ["--url", url, "--quiet", "--set", "users=1", "--summary", str(numbers), *flags]
        assert await asyncio.to_thread(cli.main, options) == 0
    assert fake.keys == {sent}
    assert "sk-mine" not in json.loads(numbers.read_text())["about"]["command"]


def test_the_tour_knows_the_key_of_its_own_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIXSERVE_API_KEY", raising=False)
    assert tour.key_of_server(["--kv-budget", "1GiB"]) is None
    monkeypatch.setenv("RADIXSERVE_API_KEY", "variable")
    assert tour.key_of_server([]) == "variable"
    assert tour.key_of_server(["--threads", "2", "--api-key", "flag"]) == "flag"


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_timeout_that_nothing_could_keep_is_refused(
    seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--timeout", seconds, "--quiet"])
    assert "--timeout: " in capsys.readouterr().err


def test_an_unreachable_server_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--url", "http://127.0.0.1:1", "--quiet"]) == 2
    assert "no server at http://127.0.0.1:1/v1" in capsys.readouterr().err
    assert cli.main(["--url", "nonsense", "--quiet"]) == 2
    assert "nonsense/v1 is not a URL" in capsys.readouterr().err


def test_a_model_that_is_not_served_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_process() as url:
        assert cli.main(["--url", url, "--model", "other", "--quiet"]) == 2
    assert "does not serve other; it has: fake" in capsys.readouterr().err


def test_an_unknown_workload_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nothing", "--quiet"]) == 2
    assert "there are: agent, chat, document" in capsys.readouterr().err


def test_a_trace_with_a_broken_line_is_refused_before_anything_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.jsonl").write_text('{"timestamp": 0}\n')
    assert cli.main(["trace", "--set", f"file={tmp_path / 't.jsonl'}"]) == 2
    assert "t.jsonl, line 1: input_length is missing" in capsys.readouterr().err


@pytest.mark.parametrize(("load", "answered"), [([], 12), (["--rate", "50"], 1)])
def test_a_server_that_dies_in_the_middle_leaves_what_was_measured(
    load: list[str], answered: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, html = tmp_path / "r.jsonl", tmp_path / "r.html"
    with fake_process("exit") as url:
        options = ["shared_system", "--quiet", "--check", "--phases", "cold,warm", *load]
        assert cli.main([*options, "--url", url, "--out", str(out), "--html", str(html)]) == 1
    assert "the server stopped taking connections" in capsys.readouterr().out
    assert sum(record["error"] is None for record in records_in(out)) >= answered
    assert {record["error"] for record in records_in(out)} == {
        None,
        "connection lost",
        "no connection",
    }
    assert html.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_full_disk_keeps_the_other_results_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = tmp_path / "s.json"
    with fake_process() as url:
        options = ["--url", url, "--quiet", "--set", "users=1", "--summary", str(numbers)]
        assert cli.main([*options, "--out", "/dev/full"]) == 1
        assert cli.main([*options, "--html", "/dev/full"]) == 1
    shown = capsys.readouterr().out
    assert "the record file is incomplete: [Errno 28] No space left on device" in shown
    assert "cannot write /dev/full: [Errno 28] No space left on device" in shown
    assert json.loads(numbers.read_text())["phases"]["cold"]["summary"]["answered"] == 8


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_terminal_that_takes_no_more_keeps_the_files_and_fails(tmp_path: Path) -> None:
    numbers = tmp_path / "s.json"
    script = (
        "import radixserve.loadtest.progress as p; p.PLAIN_SECONDS = 0.0; from "
        "radixserve.loadtest.cli import main; raise SystemExit(main())"
    )
    with fake_process() as url, Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", script, "shared_system", "--url", url, "--set", "users=1"]
        ended = subprocess.run(
            [*command, "--summary", str(numbers)],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 2
    assert "No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert json.loads(numbers.read_text())["phases"]["cold"]["summary"]["answered"] == 8


def test_interrupting_keeps_what_was_measured(tmp_path: Path) -> None:
    out, numbers = tmp_path / "r.jsonl", tmp_path / "s.json"
    with fake_process() as url:
        options = [
            "--url",
            url,
            "--quiet",
            "--rate",
            "5",
            "--out",
            str(out),
            "--summary",
            str(numbers),
        ]
        command = [sys.executable, "-m", "radixserve.loadtest", *options]
        with usual_signals():
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        with process:
            while not (out.exists() and records_in(out)):
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
    assert json.loads(numbers.read_text())["phases"]["cold"]["summary"]["unsent"] > 0


def test_the_document_names_every_workload_shape_option_and_dialect() -> None:
    text = (ROOT / "docs" / "loadtest.md").read_text()
    rows = {
        cells[1].strip(" `"): cells
        for cells in (line.split("|") for line in text.splitlines())
        if len(cells) > 3
    }
    assert [name for name in [*names(), *NEEDS, *DIALECTS] if name not in rows] == []
    options = [name for name in parser("x")._option_string_actions if name.startswith("--")]
    explained = {"--help", "--model", "--timeout", "--quiet", "--url"}  # by their own help
    assert [option for option in options if option not in text and option not in explained] == []
    for name in DIALECTS.keys() - {"openai"}:
        assert set(re.findall(r"`(\w+)`", rows[name][2])) == DIALECTS[name].refused


# -- commands with servers of their own
# ------------------------------------------------------------------------------


@pytest.fixture
def serving(tmp_path: Path) -> list[str]:
    """A command that starts the fake server whatever options it gets."""
    script = tmp_path / "serve.py"
    start = f"import sys; sys.argv = ['fake']; sys.path.insert(0, {str(ROOT)!r}); import runpy; "
    script.write_text(start + "runpy.run_module('tests.fake_openai', run_name='__main__')\n")
    return [sys.executable, str(script)]


@pytest.mark.slow
def test_figures_measures_both_servers_and_stops_them(serving: list[str]) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/figures.py"), "--command", *serving]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")]
    assert rows[2:5] == ["cache", "--no-cache", "ratio"]
    assert "GFLOP/s" in done.stdout


def test_the_tour_replays_cold_warm_and_uncached_and_says_where_the_report_is(
    serving: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bench"
    assert (
        cli.main(["tour", "--folder", str(folder), "--set", "users=2", "--command", *serving]) == 0
    )
    shown = capsys.readouterr().out
    assert shown.startswith("This takes about two minutes on 2 cores")
    assert "12 requests with long shared prompts are sent three times" in shown
    assert "prompt tokens are computed and not" in shown
    assert "warm against no cache: " in shown
    assert "phases:  cold: a server that has seen none of the prompts" in shown
    assert "command: " in shown
    assert f"report: {folder / 'report.html'}" in shown
    assert list(json.loads((folder / "summary.json").read_text())["phases"]) == [
        "cold",
        "warm",
        "no cache",
    ]
    assert len(records_in(folder / "requests.jsonl")) == 36


def test_a_tour_keeps_what_was_measured_when_the_second_server_does_not_start(
    serving: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(serving[1])
    script.write_text("import sys; '--no-cache' in sys.argv and sys.exit(3)\n" + script.read_text())
    folder = tmp_path / "bench"
    assert (
        cli.main(["tour", "--folder", str(folder), "--set", "users=1", "--command", *serving]) == 1
    )
    shown = capsys.readouterr().out
    assert "stopped: the server ended with code 3 before it was ready" in shown
    assert f"report: {folder / 'report.html'}" in shown
    assert list(json.loads((folder / "summary.json").read_text())["phases"]) == ["cold", "warm"]


def test_a_tour_whose_report_cannot_be_written_writes_the_rest(
    serving: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "summary.json").mkdir()
    assert (
        cli.main(["tour", "--folder", str(tmp_path), "--set", "users=1", "--command", *serving])
        == 1
    )
    assert "summary.json: [Errno 21] Is a directory" in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()


def test_a_tour_whose_server_does_not_start_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(
            ["tour", "--folder", str(tmp_path), "--command", sys.executable, "/no/such/script"]
        )
        == 2
    )
    assert "the server ended with code 2 before it was ready" in capsys.readouterr().err

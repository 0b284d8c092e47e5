from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from radixserve.cli import main
from radixserve.loadtest import trace
from radixserve.simulate.chart import Chart
from radixserve.simulate.command import default_budgets

SAMPLE = Path(__file__).parents[2] / "radixserve/loadtest/workloads/sample_trace.jsonl"


def test_every_policy_over_every_budget_in_tables_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    svg = tmp_path / "hits.svg"
    assert main(["cache", "simulate", str(SAMPLE), "--budget", "4", "100", "--svg", str(svg)]) == 0
    printed, progress = capsys.readouterr()
    for name in ("lru", "lfu", "fifo", "slru", "s3-fifo", "sieve", "arc", "worth", "min"):
        assert printed.count(f" {name} ") == 2
    drawn = "".join(ElementTree.fromstring(svg.read_text()).itertext())
    assert "s3-fifo" in drawn
    assert "blocks of 512 tokens" in drawn
    assert "Traceback" not in progress


def test_chosen_policies_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "simulate", str(SAMPLE), "--policy", "arc", "lru"]) == 0
    printed = capsys.readouterr().out
    assert " arc " in printed
    assert " fifo " not in printed


def line(timestamp: str) -> str:
    return f'{{"timestamp": {timestamp}, "input_length": 9, "output_length": 1, "hash_ids": [1]}}'


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "a trace needs requests"),
        ("nonsense", "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        (line("NaN"), "line 1: the timestamp"),
        (line("1").replace("9", "9" * 400), "line 1: a length of more than"),
        (line("1" + "0" * 400), "line 1: the timestamp"),
        (
            json.dumps({"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": [1]})[
                :-1
            ]
            + ', "block_tokens": 0}',
            "block_tokens must be a number",
        ),
    ],
)
def test_a_trace_that_cannot_be_used_is_refused_in_one_sentence(
    content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(content)
    assert main(["cache", "simulate", str(file)]) == 2
    assert told in capsys.readouterr().err


def test_times_of_several_runs_may_go_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "record"
    file.write_text(f"{line('5')}\n{line('0')}\n")
    assert main(["cache", "simulate", str(file), "--policy", "lru"]) == 0
    assert "2 requests" in capsys.readouterr().out


def test_a_file_without_lines_is_not_read_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trace, "_MOST_LINE", 1000)
    assert main(["cache", "simulate", "/dev/zero"]) == 2
    assert "line 1 is longer than 1,000 characters" in capsys.readouterr().err


def test_a_budget_is_a_number_of_blocks() -> None:
    with pytest.raises(SystemExit):
        main(["cache", "simulate", str(SAMPLE), "--budget", "0"])


def test_budgets_double_up_to_everything() -> None:
    assert default_budgets(1280) == [10, 20, 40, 80, 160, 320, 640, 1280]
    assert min(default_budgets(3)) == 1


def test_names_are_escaped_and_one_budget_is_enough() -> None:
    chart = Chart("<a & b>", "x", [5], {"lru": [0.0], "min": [0.01]}, "min")
    assert "<a & b>" in "".join(ElementTree.fromstring(chart.svg()).itertext())

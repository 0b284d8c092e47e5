"""Numbers, files, comparison and page: what is made of the records."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from radixserve.loadtest import compare, page, results
from radixserve.loadtest.load import Load
from radixserve.loadtest.measures import Objective, Quantiles, quantiles, summarise
from radixserve.loadtest.options import objective
from radixserve.loadtest.record import Record, RecordFile
from radixserve.loadtest.replay import Run, Sent
from radixserve.loadtest.results import Phase
from radixserve.loadtest.scrape import Sample
from radixserve.loadtest.session import WorkloadError
from radixserve.loadtest.workload import Workload


def phase(name: str, ttfts: list[float], **fields: object) -> Phase:
    """A run of streamed answers of 11 tokens, one after the other, each token 10 ms after the one
    before.
    """
    run = Run(Workload("w", 1, Load("closed", 1, {}), []), name)
    due = 0.0
    for turn, ttft in enumerate(ttfts):
        record = Record(
            "s", turn, "k", due, due, name, 200, ttft=ttft, e2e=ttft + 0.1, inter_token=[0.01] * 10
        )
        record.prompt_tokens, record.cached_tokens, record.completion_tokens = 100, 80, 11
        for key, value in fields.items():
            setattr(record, key, value)
        run.sent.append(Sent("", {}, record))
        due += record.e2e
    run.wall_seconds = due
    return Phase(
        run,
        summarise(run, Objective(ttft=0.25)),
        [Sample(0.0, 1, 2, {"a": 1}), Sample(1.0, 0, 0, {"a": 5})],
    )


def test_quantiles_are_nearest_ranks() -> None:
    assert quantiles(range(1, 101)) == Quantiles(50, 90, 99)
    assert quantiles([3.0]) == Quantiles(3.0, 3.0, 3.0)
    assert quantiles([]) is None


def test_the_numbers_of_a_run() -> None:
    summary = phase("cold", [0.1, 0.2, 0.3, 0.4]).summary
    assert (summary.answered, summary.hit_share, summary.good_share) == (4, 0.8, 0.5)
    assert summary.requests_per_second == pytest.approx(4 / 1.4)
    assert summary.good_per_second == pytest.approx(2 / 1.4)
    assert summary.latency.tpot == Quantiles(*[pytest.approx(0.01)] * 3)
    assert summary.latency.ttft == Quantiles(0.2, 0.4, 0.4)


def test_errors_are_not_good_and_those_who_left_are_not_asked() -> None:
    assert phase("cold", [0.1], error="timeout").summary.good_share == 0.0
    assert phase("cold", [0.1], left=True).summary.good_share is None


def test_the_times_of_slow_readers_keep_every_objective() -> None:
    assert phase("cold", [9.0], slow=True).summary.good_share == 1.0


def test_a_server_that_says_nothing_of_its_cache_has_prompt_tokens_all_the_same() -> None:
    summary = phase("cold", [0.1, 0.2], cached_tokens=None).summary
    assert (summary.prompt_tokens, summary.hit_share) == (200, None)


def test_the_summary_file_counts_what_the_dialect_left_out(tmp_path: Path) -> None:
    made = phase("cold", [0.1])
    made.run.left_out["store"] = 3
    assert json.loads(Path(written(tmp_path / "a.json", made)).read_text())["phases"]["cold"][
        "left_out"
    ] == {"store": 3}


def test_an_objective_is_names_and_seconds() -> None:
    assert objective("ttft=0.5,tpot=0.05") == Objective(ttft=0.5, tpot=0.05)
    for text in ("ttft", "ttft=x", "speed=3"):
        with pytest.raises(Exception, match="must be"):
            objective(text)


def test_a_full_disk_ends_the_record_file_and_not_the_run() -> None:
    with RecordFile(Path("/dev/full")) as file:
        file.write(Record("c", 1, "k", 0.0))
        file.write(Record("c", 2, "k", 0.0))
    assert file.error is not None
    assert "No space left" in str(file.error)


# -- compare
# --------------------------------------------------------------------------------------------------------


def written(path: Path, *phases: Phase) -> str:
    results.write(path, phases, "http://there/v1")
    return str(path)


def compared(*files: str) -> str:
    console = Console(width=200, file=io.StringIO())
    assert compare.main(files, "compare", console) == 0
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_compare_gives_ratios_with_the_interval_in_which_they_lie(tmp_path: Path) -> None:
    slow = [0.2 + 0.001 * n for n in range(60)]
    a = written(tmp_path / "a.json", phase("cold", slow), phase("warm", slow))
    b = written(
        tmp_path / "b.json", phase("cold", [ttft / 2 for ttft in slow]), phase("other", slow)
    )
    text = compared(a, b)
    (row,) = [line for line in text.splitlines() if "TTFT p50" in line]
    cells = [cell.strip() for cell in row.split("│")[2:-1]]
    assert [cells[0], cells[2]] == ["0.2295", "2.00"]
    low, high = map(float, cells[3].split(" .. "))
    assert 1.8 < low < 2.0 < high < 2.2
    assert "warm" not in text
    assert "requests/s" in text


def test_compare_takes_one_phase_of_a_file(tmp_path: Path) -> None:
    file = written(tmp_path / "a.json", phase("cold", [0.2] * 9), phase("warm", [0.1] * 9))
    assert "cold / warm: A / B" in compared(f"{file}:cold", f"{file}:warm")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("{", "is not what --summary writes"),
        ("[]", "is not what --summary writes"),
        ('{"format": 9}', "its format is 9, not 1"),
    ],
)
def test_compare_refuses_what_is_no_summary(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(WorkloadError, match=message):
        compare.main([str(path), str(path)], "compare", Console(quiet=True))


def test_compare_names_the_phases_there_are(tmp_path: Path) -> None:
    file = written(tmp_path / "a.json", phase("cold", [0.1]))
    with pytest.raises(WorkloadError, match="has no phase hot; it has: cold"):
        compare.main([f"{file}:hot", file], "compare", Console(quiet=True))


# -- files and the page
# ---------------------------------------------------------------------------------------------


def test_the_summary_file_holds_the_growth_of_the_servers_counters(tmp_path: Path) -> None:
    file = json.loads(Path(written(tmp_path / "a.json", phase("cold", [0.1, 0.2]))).read_text())
    assert file["phases"]["cold"]["server_counters"] == {"a": 4}
    assert file["phases"]["cold"]["values"]["ttft"] == [0.1, 0.2]


def test_the_page_loads_nothing_and_no_name_can_leave_its_data() -> None:
    made = page.render(
        [phase("cold", [0.1], kind="</script><script>alert(1)</script>")], "http://<b>there"
    )
    assert "alert(1)</script>" not in made
    assert "http://<b>" not in made
    assert "<!--" not in made
    assert " src=" not in made
    assert "href=" not in made
    data = made.split('type="application/json">')[1].split("</script>")[0]
    assert json.loads(data)[0]["requests"][0]["kind"] == "</script><script>alert(1)</script>"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the Debian package chromium")
@pytest.mark.parametrize("what", ["full", "empty"])
def test_the_page_draws_every_plot_in_a_browser(tmp_path: Path, what: str) -> None:
    phases = (
        [phase("cold", [0.1, 0.2, 4.0]), phase("warm", [0.05])]
        if what == "full"
        else [phase("cold", [])]
    )
    phases[0].run.left_out["store"] = 3
    (tmp_path / "r.html").write_text(page.render(phases, "http://there"), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    command = ["chromium", *options, (tmp_path / "r.html").as_uri()]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    figures = [
        figure.split("</figure>")[0] for figure in drawn.split("<script")[0].split("<figure")[1:]
    ]
    plots = {re.findall(r'<div id="(\w+)">', figure)[-1]: figure for figure in figures}
    assert plots.keys() == {"ttft", "tpot", "hits", "queue", "load", "work", "timeline"}
    shown = {
        name: (plot.count("<path"), plot.count("<circle"), plot.count("<rect"))
        for name, plot in plots.items()
    }
    if what == "full":
        assert (shown["ttft"], shown["queue"], shown["load"]) == ((2, 0, 0), (4, 0, 0), (0, 4, 0))
        assert shown["timeline"] == (0, 0, 8)
        assert "NaN" not in drawn.split("<script")[0]
        assert ">goodput/s</th>" in drawn
        assert "cold: left out of requests, for this dialect: store (3 ×)" in drawn
    else:
        assert "nothing was measured" in plots["ttft"]

"""Numbers, files, comparison and page: what is made of the records."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from radixserve.loadtest import compare, page, results
from radixserve.loadtest.about import About, about, described, read_version
from radixserve.loadtest.headline import headline, times
from radixserve.loadtest.load import Load
from radixserve.loadtest.measures import Objective, Quantiles, quantiles, summarise
from radixserve.loadtest.options import objective
from radixserve.loadtest.record import Record, RecordFile
from radixserve.loadtest.replay import Run, Sent
from radixserve.loadtest.results import Phase
from radixserve.loadtest.scrape import Sample
from radixserve.loadtest.session import WorkloadError
from radixserve.loadtest.target import Target, base_url
from radixserve.loadtest.workload import Workload
from tests.fake_openai import FakeOpenAI

THERE = About("http://there/v1", "radixserve bench", "2026-01-02 03:04 +0000", "a CPU, 2 cores")


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
    assert summary.latency.tpot == Quantiles(*[pytest.approx(0.01)] * 3)  # type: ignore[arg-type]
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
# --------------------------------------------------------------------------------------------------


def written(path: Path, *phases: Phase) -> str:
    results.write(path, phases, THERE)
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
        [phase("cold", [0.1], kind="</script><script>alert(1)</script>")],
        dataclasses.replace(THERE, url="http://<b>there", model="<i>model"),
    )
    assert "alert(1)</script>" not in made
    assert "http://<b>" not in made
    assert "<i>" not in made
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
    (tmp_path / "r.html").write_text(page.render(phases, THERE), encoding="utf-8")
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


# -- the sentence, and what was measured
# ----------------------------------------------------------------------------


def test_the_headline_tells_each_phase_against_the_baseline_the_largest_difference_first() -> None:
    summaries = {
        "cold": phase("cold", [0.5] * 9).summary,
        "warm": phase("warm", [0.01] * 9).summary,
        "no cache": phase("no cache", [1.0] * 9).summary,
    }
    assert list(headline(summaries, "no cache")) == [
        "warm against no cache: 10x the throughput, first token 100x sooner",
        "cold against no cache: 1.8x the throughput, first token 2x sooner",
    ]
    assert list(headline(summaries))[-1] == (
        "no cache against cold: 0.55x the throughput, first token 2x later"
    )


def test_the_headline_says_when_there_is_no_difference_and_tells_one_phase_by_its_numbers() -> None:
    one, other = phase("a", [0.1] * 9).summary, phase("b", [0.101] * 9).summary
    assert list(headline({"a": one, "b": other})) == [
        "b against a: the same throughput, first token as soon"
    ]
    assert list(headline({"a": one})) == [
        "a: 9 of 9 requests answered, 5 a second, first token after 100 ms (median), "
        "80% of the prompts' tokens from the cache"
    ]
    unanswered = phase("c", [0.1], error="timeout").summary
    assert next(iter(headline({"a": one, "c": unanswered}, "c"))).startswith("a: 9 of 9")
    assert list(headline({"c": unanswered})) == []


def test_ratios_have_two_digits() -> None:
    assert [times(ratio) for ratio in (0.314, 1.26, 9.94, 9.96, 11.7, 123.4)] == [
        *("0.31x", "1.3x", "9.9x", "10x", "12x", "123x")
    ]


def test_compare_says_in_a_sentence_what_shows(tmp_path: Path) -> None:
    ttfts = [0.2 + 0.001 * n for n in range(60)]
    a = written(tmp_path / "a.json", phase("cold", [ttft / 4 for ttft in ttfts]))
    b = written(tmp_path / "b.json", phase("cold", ttfts))
    assert "cold, A against B: 2.1x the throughput, first token 4x sooner" in compared(a, b)
    same = "cold, A against B: no difference in throughput, no difference in the first token"
    assert same in compared(a, a)


async def test_the_server_tells_its_version_and_what_its_engine_is() -> None:
    async with FakeOpenAI().serve() as url:
        assert await described(Target(base_url(url))) == {}, "no /version"
    assert await described(Target("http://127.0.0.1:1/v1")) == {}
    engine = {"device": "cpu", "dtype": "float32", "attention": "tiles", "exact": True}
    assert read_version({"version": "1.2", "engine": engine}) == {
        "server": "radixserve 1.2",
        "engine": "cpu, float32, attention: tiles, a cache hit equals a miss bit for bit",
    }
    assert read_version({"version": "0.9"}) == {"server": "version 0.9"}
    for nonsense in ([], {"version": 3}, None, "x", {"engine": {}}):  # type: ignore[var-annotated]
        assert read_version(nonsense) == {}


def test_what_was_measured_names_the_machine_the_time_and_the_command_without_a_password() -> None:
    url = "http://me:secret@127.0.0.1:80/v1"
    keys = ["--api-key", "sk-1", "--api-key=sk-2"]
    made = about(Target(url), ["radixserve", "bench", "a b", "--url", url, *keys])
    rows = dict(made.rows())
    assert rows["command"] == (
        "radixserve bench 'a b' --url http://127.0.0.1:80/v1"
        " --api-key '(secret)' '--api-key=(secret)'"
    )
    assert rows["address"] == "http://127.0.0.1:80/v1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d [+-]\d{4}", rows["date"])
    assert re.search(r"\d+ cores", rows["machine"])
    assert "remote" not in rows["machine"]
    assert "remote" in dict(dataclasses.replace(made, url="http://there/v1").rows())["machine"]
    assert "not told" in rows["server"]


def test_the_page_and_the_summary_say_what_was_measured_and_the_headline(tmp_path: Path) -> None:
    told = dataclasses.replace(THERE, server="radixserve 9", model="m", engine="cpu, float32")
    phases = [phase("warm", [0.1] * 9), phase("no cache", [1.0] * 9)]
    made = page.render(phases, told, "no cache")
    results.write(tmp_path / "s.json", phases, told, "no cache")
    file = json.loads((tmp_path / "s.json").read_text())
    assert file["headline"] == [
        "warm against no cache: 5.5x the throughput, first token 10x sooner"
    ]
    assert f"<li>{file['headline'][0]}</li>" in made
    assert file["about"]["server"] == "radixserve 9"
    for label, text in told.rows():
        assert f"<dt>{label}</dt><dd>{text}</dd>" in made

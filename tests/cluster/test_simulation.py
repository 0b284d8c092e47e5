"""The simulation beside small cases that can be worked out, and the command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from radixserve.cli import main
from radixserve.cluster.policy import Asked, LeastCost, LeastLoaded, RoundRobin
from radixserve.cluster.simulation import Cluster, copies, simulate, spread
from radixserve.loadtest.trace import Line

SAMPLE = Path(__file__).parents[2] / "radixserve/loadtest/workloads/sample_trace.jsonl"


def line(seconds: float, *ids: int, tokens: int | None = None) -> Line:
    """A request of blocks of 10 tokens."""
    return Line(1, seconds, tokens or 10 * len(ids), 1, ids, 10)


def test_a_prompt_waits_for_the_one_before_and_computes_what_is_not_cached() -> None:
    lines = [line(0.0, 1, 2), line(1.0, 1, 2, 3), line(50.0, 1, 2)]
    outcome = simulate(lines, Cluster(1, 100, tokens_per_second=1.0), LeastLoaded)
    assert outcome.seconds == [20.0, 29.0, 1.0]  # the last token is always computed
    assert (outcome.hit_tokens, outcome.prompt_tokens) == (20 + 19, 70)


def test_the_deepest_block_of_the_oldest_prompt_is_evicted_first() -> None:
    lines = [line(0.0, 1, 2, 3), line(100.0, 8), line(200.0, 1, 2, 3), line(300.0, 8)]
    outcome = simulate(lines, Cluster(1, 3, tokens_per_second=1.0), LeastLoaded)
    assert outcome.hit_tokens == 20  # 3 went for 8, and 8 for 3


def test_round_robin_computes_what_affinity_finds() -> None:
    lines = [line(10.0 * i, i % 3 // 2, i % 3) for i in range(30)]
    cluster = Cluster(2, 100, tokens_per_second=100.0)
    apart = simulate(lines, cluster, RoundRobin)
    together = simulate(lines, cluster, LeastCost)
    assert together.hit_tokens > apart.hit_tokens
    assert apart.prompt_tokens - apart.hit_tokens == sum(apart.computed)


def test_a_gateway_learns_what_another_has_sent() -> None:
    """Two take turns, so without events the second one would not know of the first prompt."""
    lines = [line(0.0, 1, 2, 3), line(60.0, 1, 2, 3)]
    for delay, hits in ((0.1, 29), (1000.0, 0)):
        cluster = Cluster(2, 100, tokens_per_second=1.0, gateways=2, delay=delay)
        policies = iter((First(), LeastCost()))
        outcome = simulate(lines, cluster, lambda given=policies: next(given))  # type: ignore[misc]
        assert outcome.hit_tokens == hits


class First(RoundRobin):
    """Sends everything to the server that rendezvous hashing would not choose."""

    def choose(self, asked: Asked, waits: Sequence[float]) -> int:
        """See `Policy.choose`."""
        return 1 - LeastCost().choose(asked, waits)


def test_equal_times_are_spread_to_the_next() -> None:
    lines = spread([line(5.0, 1), line(0.0, 2), line(0.0, 3), line(0.0, 4), line(0.0, 5)])
    assert [each.seconds for each in lines] == [0.0, 1.25, 2.5, 3.75, 5.0]


def test_copies_share_only_what_most_prompts_begin_with() -> None:
    made = copies([line(0.0, 1, 2), line(4.0, 1, 3), line(8.0, 9, 4)], 2)
    assert [each.seconds for each in made] == sorted(each.seconds for each in made)
    assert len({each.hash_ids[0] for each in made}) == 3  # 1 for all, 9 for each copy
    assert len({each.hash_ids[1] for each in made}) == 6
    assert copies([line(0.0, 1)], 1) == [line(0.0, 1)]


def test_the_command_compares_all_policies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    svg = tmp_path / "hits.svg"
    command = ["cluster", "simulate", str(SAMPLE), "--servers", "2", "4", "--gateways", "2"]
    assert main([*command, "--servers-per-copy", "2", "--svg", str(svg)]) == 0
    printed = capsys.readouterr().out
    for name in ("one cache", "cost", "rendezvous", "least_loaded", "round_robin"):
        assert printed.count(f" {name} ") == 2
    drawn = "".join(ElementTree.fromstring(svg.read_text()).itertext())
    assert "rendezvous" in drawn


@pytest.mark.parametrize(
    "wrong", [["--alpha", "0"], ["--servers", "0"], ["--servers", "5000"], ["--speed", "nan"]]
)
def test_numbers_that_mean_nothing_are_refused(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["cluster", "simulate", str(SAMPLE), *wrong])
    assert "is not a number" in capsys.readouterr().err


def test_a_trace_that_is_missing_or_empty_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    for file, told in ((empty, "no requests"), (tmp_path / "none", "cannot read")):
        assert main(["cluster", "simulate", str(file)]) == 2
        assert told in capsys.readouterr().err

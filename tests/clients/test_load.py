"""Programs that measure and evaluate: each sends what docs/clients.md says, and its own report
tells how the server answered.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients import examples
from tests.e2e.server import Server

REQUESTS = 4  # of every script, with 64 tokens of text and 8 of an answer
TEMPLATE = 30  # tokens that the chat template adds

Counts = dict[str, float]


def of_guidellm(folder: Path) -> Counts:
    metrics = read(folder / "guidellm.json")["benchmarks"][0]["metrics"]
    requests = metrics["request_totals"]
    return {
        "answered": requests["successful"],
        "failed": requests["errored"] + requests["incomplete"],
        "prompts": metrics["prompt_token_count"]["successful"]["total_sum"],
        "answers": metrics["output_token_count"]["successful"]["total_sum"],
    }


def of_aiperf(folder: Path) -> Counts:
    (file,) = folder.glob("artifacts/*/aiperf.json")
    report = read(file)
    return {
        "answered": report["request_count"]["avg"],
        "failed": report["request_error_rate"]["avg"] + len(report["error_summary"]),
        "prompts": report["total_isl"]["avg"],
        "answers": report["total_osl"]["avg"],
    }


def of_vllm(folder: Path) -> Counts:
    report = read(folder / "vllm.json")
    return {
        "answered": report["completed"],
        "failed": report["failed"],
        "prompts": report["total_input_tokens"],
        "answers": report["total_output_tokens"],
    }


def read(file: Path) -> Any:
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("name", "report"),
    [("guidellm.sh", of_guidellm), ("aiperf.sh", of_aiperf), ("vllm_bench.sh", of_vllm)],
)
def test_every_request_of_a_load_is_answered_in_full(
    name: str, report: Callable[[Path], Counts], server: Server, tmp_path: Path
) -> None:
    examples.run(name, server.url, tmp_path)
    assert report(tmp_path) == {
        "answered": REQUESTS,
        "failed": 0,
        "prompts": REQUESTS * (64 + TEMPLATE),
        "answers": REQUESTS * 8,
    }


def test_a_task_of_the_evaluation_harness_is_scored(server: Server, tmp_path: Path) -> None:
    examples.run("lm_eval.sh", server.url, tmp_path)
    (file,) = tmp_path.glob("results/*/results_*.json")
    scores = read(file)["results"]["capitals"]
    assert scores["acc,none"] == 1
    assert scores["perplexity,none"] == pytest.approx(1.845, abs=0.01)

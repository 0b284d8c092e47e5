"""The load test against a real server with the real model: answers compared, its own count of
cached tokens checked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import Server

ROOT = Path(__file__).parent.parent.parent
SMALL_CHAT = ("groups=2", "users=3", "system_words=120", "body.max_tokens=8", "load.clients=6")
SMALL_TRACE = ("requests=10", "speed=10", "length_scale=0.05", "most_output=8", "blocks=ids")


def load_test(server: Server, folder: Path, workload: str, *options: str) -> dict[str, Any]:
    files = [
        "--summary",
        str(folder / "s.json"),
        "--out",
        str(folder / "r.jsonl"),
        "--html",
        str(folder / "r.html"),
    ]
    command = [
        sys.executable,
        "-m",
        "radixserve",
        "bench",
        workload,
        "--url",
        server.url,
        *files,
        *options,
    ]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    phases: dict[str, Any] = json.loads((folder / "s.json").read_text())["phases"]
    return phases


@pytest.mark.model
@pytest.mark.parametrize(
    ("workload", "changes"), [("shared_system", SMALL_CHAT), ("trace", SMALL_TRACE)]
)
def test_every_answer_is_the_same_alone_and_the_server_counts_what_it_reports(
    server: Server, tmp_path: Path, workload: str, changes: tuple[str, ...]
) -> None:
    sets = [part for change in changes for part in ("--set", change)]
    phases = load_test(
        server, tmp_path, workload, *sets, "--check", "--phases", "cold,warm", "--seed", "77"
    )
    cold, warm = (phase["summary"] for phase in phases.values())
    assert (cold["errors"], warm["errors"], cold["unsent"]) == ({}, {}, 0)
    assert 0.2 < cold["hit_share"] < warm["hit_share"] > 0.85
    for phase in phases.values():
        grown = phase["server_counters"]
        read = grown.get("radixserve_prompt_tokens_total{source=device}", 0.0)
        computed = grown["radixserve_prompt_tokens_total{source=computed}"]
        summary = phase["summary"]
        assert (read, read + computed) == (summary["cached_tokens"], summary["prompt_tokens"])


@pytest.mark.model
def test_nothing_that_clients_do_wrong_is_the_servers_error(server: Server, tmp_path: Path) -> None:
    options = [
        "--set",
        "groups=20",
        "--set",
        "user_words=20",
        "--set",
        "body.max_tokens=8",
        "--rate",
        "20",
    ]
    phases = load_test(
        server, tmp_path, "random", *options, "--garbage", "0.3", "--leave", "0.2", "--slow", "0.2"
    )
    summary = phases["cold"]["summary"]
    assert summary["errors"] == {}
    assert min(summary[key] for key in ("answered", "refused", "left", "slow")) > 0

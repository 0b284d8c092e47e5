"""500 requests of mixed kinds, a fifth of the clients leaving at a random moment: nothing is lost,
hung or leaked.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.e2e.server import Server, running

ROOT = Path(__file__).parent.parent.parent


def gauges(server: Server) -> dict[str, float]:
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")
    }


def test_mixed_traffic_with_leaving_clients_leaves_nothing_behind(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    options = (
        "--fake-model",
        "--served-model-name",
        "fake",
        "--threads",
        "1",
        "--log-level",
        "error",
    )
    with running(
        *options, "--kv-budget", "64KiB", "--max-queue", "1000"
    ) as server:  # 4,096 slots: eviction all the time
        command = [
            sys.executable,
            "-m",
            "radixserve.loadtest",
            "mixed",
            "--url",
            server.url,
            "--leave",
            "0.2",
            "--quiet",
        ]
        ended = subprocess.run(
            [*command, "--out", str(records)], cwd=ROOT, capture_output=True, text=True, timeout=280
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        sent = [json.loads(line) for line in records.read_text().splitlines()]
        assert len(sent) == 500
        deadline = time.monotonic() + 30
        while (now := gauges(server))["radixserve_requests_running"] or now[
            "radixserve_requests_waiting"
        ]:
            assert time.monotonic() < deadline, "a request of a client that left still runs"
            time.sleep(0.1)
        assert now['radixserve_kv_bytes{state="leased"}'] == 0
        free, cached = (
            now['radixserve_kv_bytes{state="free"}'],
            now['radixserve_kv_bytes{state="cached"}'],
        )
        assert free + cached == now['radixserve_kv_bytes{state="budget"}']
        assert now["radixserve_evicted_tokens_total"] > 0
        left = now.get('radixserve_requests_total{endpoint="chat",outcome="abort"}', 0.0)
        left += now.get('radixserve_requests_total{endpoint="completions",outcome="abort"}', 0.0)
        assert left > 0, "nobody left in the middle: the test shows nothing"

"""What Prometheus itself thinks of the page, of configs/prometheus.yml and of the queries in
docs/metrics.md.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from radixserve.engine.counters import RUNNING, STEP_SECONDS, STEP_SEQUENCES, STEP_TOKENS, STEPS
from radixserve.metrics import Metrics, RequestRecord
from radixserve.step import EngineInfo, EngineStats

pytestmark = pytest.mark.slow  # a real Prometheus

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "prometheus.yml"

INFO = EngineInfo(
    vocab_size=100,
    context_length=64,
    eos_token_ids=(2,),
    max_request_tokens=64,
    num_slots=100,
    pool_slots=100,
    slot_bytes=1000,
    device="cpu",
    dtype="float32",
    checkpoint_dtype="float32",
    kv_dtype="float32",
    attention="numba",
    exact=True,
)

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="needs the Debian package prometheus (.ci/run installs it)",
)


def page(stats: EngineStats) -> bytes:
    """A page on which every metric has a value."""
    metrics = Metrics("tiny")
    metrics.record(
        RequestRecord("chat.completions", "stop", 100, 90, 3, 0.01, 0.02, 0.5, [0.1, 0.2])
    )
    metrics.observe_steps(
        EngineStats(
            numbers={STEPS.key(): 1},
            observed={
                STEP_SECONDS.key(): [0.5],
                STEP_TOKENS.key(): [8],
                STEP_SEQUENCES.key(): [2],
            },
        )
    )
    return metrics.render(stats, INFO)


@needs_prometheus
def test_promtool_finds_no_fault_with_the_page() -> None:
    rendered = page(EngineStats())
    result = subprocess.run(
        ["promtool", "check", "metrics"],
        input=rendered,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@needs_prometheus
def test_promtool_finds_no_fault_with_the_configuration() -> None:
    command = ["promtool", "check", "config", str(CONFIG)]
    result = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def metrics_port() -> Iterator[int]:
    """The port of a little server whose /metrics is a rendered page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("Content-Type", Metrics.content_type)
            self.end_headers()
            self.wfile.write(page(EngineStats(numbers={RUNNING.key(): 4})))

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running_prometheus(port: int, folder: Path) -> Iterator[str]:
    """The address of a real Prometheus that runs configs/prometheus.yml against `port` and keeps
    its data in `folder`.
    """
    config = (
        CONFIG.read_text()
        .replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        .replace("5s", "200ms")
        .replace("prometheus-alerts.yml", str(CONFIG.with_name("prometheus-alerts.yml")))
    )
    (folder / "prometheus.yml").write_text(config)
    address = f"127.0.0.1:{_free_port()}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stderr=log,
        )
    try:
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


@pytest.fixture
def prometheus(metrics_port: int, tmp_path: Path) -> Iterator[str]:
    """The address of a real Prometheus that scrapes `metrics_port`."""
    with running_prometheus(metrics_port, tmp_path) as address:
        yield address


def query_values(address: str, query: str) -> list[float]:
    """The values of an instant query; none before Prometheus is up."""
    url = f"http://{address}/api/v1/query?query={urllib.parse.quote(query)}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return [float(each["value"][1]) for each in json.load(answer)["data"]["result"]]
    except OSError:
        return []


@needs_prometheus
def test_a_real_prometheus_scrapes_what_the_configuration_says(prometheus: str) -> None:
    found: list[float] = []
    for _ in range(150):
        found = query_values(prometheus, 'radixserve_requests_running{job="radixserve"}')
        if found:
            break
        time.sleep(0.2)
    assert found == [4]
    assert query_values(prometheus, 'up{job="radixserve"}') == [1]
    assert query_values(prometheus, 'sum(radixserve_requests_total{outcome="stop"})') == [1]
    median = "histogram_quantile(0.5, radixserve_time_to_first_token_seconds_bucket{prefix='warm'})"
    assert query_values(prometheus, median) == [pytest.approx(0.015)]


@needs_prometheus
def test_prometheus_understands_every_query_of_the_documentation(prometheus: str) -> None:
    rows = re.findall(
        r"^\| [^|]+ \| `(.+)` \|$", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE
    )
    queries = [row.replace("\\|", "|") for row in rows if "(" in row or "{" in row]
    assert len(queries) >= 9
    for _ in range(150):
        if query_values(prometheus, "vector(1)") == [1]:
            break
        time.sleep(0.2)
    refused = []
    for query in queries:
        url = f"http://{prometheus}/api/v1/query?query={urllib.parse.quote(query)}"
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError as error:
            refused.append(f"{query}: {error.read().decode()}")
            error.close()
    assert refused == []

"""What a real server tells a collector, and a person at a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request

import pytest

from tests.e2e.server import running
from tests.telemetry.collector import attributes, collecting

pytestmark = pytest.mark.slow  # a real server


def ask(url: str, text: str = "What is a radix tree?") -> None:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def test_a_server_that_ends_has_sent_the_traces_and_metrics_of_its_requests() -> None:
    """Times of the engine lie within those of the front: both read one clock."""
    with collecting() as collector:
        with running("--fake-model", "--otlp-endpoint", collector.url) as server:
            ask(server.url)
            ask(server.url)
            assert server.stop() == 0
        cold, warm = collector.wait_for_roots(2)
        assert attributes(cold)["radixserve.cached_share"] == 0
        assert attributes(warm)["radixserve.cached_share"] > 0.8
        parts = collector.children(warm)
        queue, prefill = parts["queue"], parts["prefill"]
        assert warm.start_time_unix_nano < queue.start_time_unix_nano
        assert queue.end_time_unix_nano == prefill.start_time_unix_nano
        assert prefill.start_time_unix_nano < prefill.end_time_unix_nano
        (resource,) = collector.metrics[-1].resource_metrics
        names = {metric.name for metric in resource.scope_metrics[0].metrics}
        assert {"radixserve_requests", "radixserve_step_seconds"} <= names


def test_top_shows_a_real_server() -> None:
    with running("--fake-model") as server:
        ask(server.url)
        ask(server.url)
        command = [sys.executable, "-m", "radixserve", "top", "--url", server.url]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("radixserve ready")
    assert "device" in result.stdout
    assert "<|im_start|>" in result.stdout, "the first tokens of the most used prefix"

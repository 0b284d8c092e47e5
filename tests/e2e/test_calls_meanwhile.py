"""Every call about the cache, while requests are preempted, when the engine dies and while the
server drains: an answer or a clear refusal, and no stream loses a token.

`tests/tiers/test_questions_meanwhile.py` does so while K/V comes from the disk.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.server import Server, running
from tests.e2e.test_lifecycle import FAKE, LONG, complete, engine_pid, going_on, status, until

PROMPT = "The same prompt for all that look at one. " * 4
CALLS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "explain": ("POST", "/cache/explain", {"prompt": PROMPT}),
    "warm": ("POST", "/cache/warm", {"prompt": PROMPT}),
    "pin": ("POST", "/cache/pin", {"prompt": PROMPT, "ttl": 60}),
    "unpin": ("DELETE", "/cache/pin/pin_0123456789abcdef", None),
    "pins": ("GET", "/cache/pins", None),
    "tree": ("GET", "/cache/tree", None),
    "summary": ("GET", "/cache", None),
    "drop a prefix": ("DELETE", "/cache?prefix=The%20same", None),
    "drop what is old": ("DELETE", "/cache?older_than=1s", None),
    "flush": ("POST", "/flush_cache", None),
    "reset": ("POST", "/reset_prefix_cache", None),
}
every_call = pytest.mark.parametrize("name", CALLS)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server whose memory holds one long answer, but not two."""
    with running(*FAKE, "--kv-budget", "40KiB") as started:
        yield started


@pytest.fixture(scope="module")
def expected(server: Server) -> str:
    return complete(server, max_tokens=LONG)


def call(server: Server, name: str) -> int:
    """The status of a call, which is 200, or a refusal that says when to come again; or 404 where
    there is no such pin.
    """
    method, path, body = CALLS[name]
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            code, answer, wait = response.status, json.load(response), None
    except urllib.error.HTTPError as error:
        with error:
            code, answer, wait = error.code, json.load(error), error.headers["Retry-After"]
    if code == 503:
        assert answer["error"]["code"] in ("server_not_ready", "server_is_overloaded")
        assert int(wait or 0) >= 1
    else:
        assert code == 200 or (code, name) == (404, "unpin")
    return int(code)


PREEMPTIONS = "radixserve_preemptions_total"


def preemptions(server: Server) -> float:
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return next(float(each.split()[1]) for each in lines if each.startswith(PREEMPTIONS))


@every_call
def test_while_requests_are_preempted(server: Server, expected: str, name: str) -> None:
    before, texts = preemptions(server), list[str]()
    asking = [
        threading.Thread(target=lambda: texts.append(complete(server, max_tokens=LONG)))
        for _ in range(2)
    ]
    for each in asking:
        each.start()
    until(lambda: preemptions(server) > before)
    assert call(server, name) in (200, 404)
    for each in asking:
        each.join()
    assert texts == [expected] * 2
    assert complete(server, max_tokens=8) == expected[:8]


@every_call
def test_when_the_engine_dies(server: Server, expected: str, name: str) -> None:
    with going_on(server) as texts:
        os.kill(engine_pid(server), signal.SIGKILL)
        call(server, name)
    assert texts == [expected]
    assert call(server, name) in (200, 404)
    assert complete(server, max_tokens=8) == expected[:8]


def test_while_the_server_drains(expected: str) -> None:
    with running(*FAKE) as ending:
        with going_on(ending) as texts, ThreadPoolExecutor(len(CALLS)) as threads:
            ending.process.send_signal(signal.SIGTERM)
            until(lambda: status(ending, "/health/ready") == 503)
            codes = dict(
                zip(CALLS, threads.map(lambda each: call(ending, each), CALLS), strict=True)
            )
        assert texts == [expected]
        assert codes["warm"] == 503
        assert {codes[each] for each in ("summary", "tree", "flush", "reset", "pins")} == {200}
        assert ending.process.wait(60) == 0

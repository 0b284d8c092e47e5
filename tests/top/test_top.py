"""`radixserve top`: the screen on a recording console, a real server, and servers that are none."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from radixserve.metrics import Metrics, RequestRecord
from radixserve.step import EngineStats
from radixserve.top.command import Watch
from radixserve.top.screen import screen
from radixserve.top.source import History, Node, Reading, Source, TopError
from tests.fakes import INFO
from tests.signals import usual_signals

PROMPT = "radixserve_prompt_tokens_total"
NODES = [
    {"id": 1, "depth": 0, "tokens": 0, "namespace": "public"},
    {"id": 2, "depth": 0, "tokens": 120, "hits": 7, "age_seconds": 90.0, "text": "You are"},
    {"id": 3, "parent": 2, "depth": 120, "tokens": 30, "hits": 2, "text": "Hi\n\x1b[2Jthere"},
]


class Server:
    """A server of which a test decides what it answers."""

    def __init__(self) -> None:
        self.metrics = Metrics("tiny")
        self.status = 200
        self.key: str | None = None
        self.tree_status = 200
        self.url = ""

    def answer(self, path: str, key: str | None) -> tuple[int, bytes]:
        if self.key is not None and key != f"Bearer {self.key}":
            return 401, b"{}"
        if path == "/metrics":
            return self.status, self.metrics.render(EngineStats(), INFO)
        if path.startswith("/cache/tree"):
            return self.tree_status, json.dumps({"nodes": NODES}).encode()
        return 404, b""


@pytest.fixture
def server() -> Iterator[Server]:
    it = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = it.answer(self.path, self.headers.get("Authorization"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    it.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield it
    http.shutdown()
    http.server_close()
    thread.join()


def reading(at: float, **totals: float) -> Reading:
    """A page with these prompt tokens by source, and full budgets."""
    samples: dict[str, list[tuple[dict[str, str], float]]] = {
        PROMPT: [({"source": source}, value) for source, value in totals.items()],
        "radixserve_generated_tokens_total": [({}, at * 20)],
        "radixserve_steps_total": [({}, at)],
        "radixserve_engine_up": [({}, 1.0)],
        "radixserve_requests_running": [({}, 3.0)],
        "radixserve_requests_waiting": [({}, 12.0)],
        "radixserve_kv_bytes": [
            ({"state": "budget"}, 2.0 * (1 << 30)),
            ({"state": "leased"}, 0.5 * (1 << 30)),
            ({"state": "evictable"}, 1.0 * (1 << 30)),
        ],
        "radixserve_tier_bytes": [
            ({"tier": tier, "state": state}, size)
            for tier in ("host", "disk")
            for state, size in (("budget", 4e9), ("used", 1e9))
        ],
        "radixserve_model_info": [({"model": "a-model-with-a-very-long-name" * 3}, 1.0)],
    }
    return Reading(at, samples)


def shown(history: History, nodes: list[Node] | str = "", trouble: str | None = None) -> list[str]:
    """The lines on a terminal of 80 columns."""
    console = Console(width=80, height=24, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(screen("http://127.0.0.1:8000", history, nodes, trouble))
        return console.export_text().splitlines()


def of(*readings: Reading) -> History:
    history = History()
    for each in readings:
        history.add(each)
    return history


def test_the_share_is_that_of_the_last_minute_by_tier() -> None:
    history = of(
        reading(0.0, computed=900, device=100, disk=0),
        reading(1.0, computed=950, device=200, disk=50),
    )
    text = "\n".join(shown(history))
    assert " 75%  device 50%  disk 25%" in text
    assert "20 tokens/s out  50/s computed of prompts" in text
    assert "3 running  12 waiting" in text
    assert "1.5 GiB of 2.0 GiB  512.0 MiB in use" in text


def test_a_full_screen_fits_into_80_by_24() -> None:
    history = of(*(reading(float(at), computed=at, device=at * 9) for at in range(100)))
    nodes = [Node(10**6, 10**5, 10.0**at, True, "long text " * 30) for at in range(12)]
    lines = shown(history, nodes)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert len(history.readings) == 61


def with_tenants(at: float, names: list[str]) -> Reading:
    """A reading in which tenant n had 100 n prompt tokens each second, 10 n of them computed."""
    found = reading(at, computed=at, device=at * 9)
    found.samples["radixserve_tenant_prompt_tokens_total"] = [
        ({"tenant": name, "source": source}, at * part * n)
        for n, name in enumerate(names)
        for source, part in (("computed", 10.0), ("device", 90.0))
    ]
    found.samples["radixserve_tenant_kv_bytes"] = [({"tenant": names[-1]}, 2.0 * (1 << 20))]
    found.samples["radixserve_tenant_requests"] = [
        ({"tenant": names[-1], "state": "running"}, 3.0),
        ({"tenant": names[-1], "state": "waiting"}, 7.0),
    ]
    return found


def test_several_tenants_are_told_apart_and_the_screen_still_fits() -> None:
    names = ["calm", "busy\x1b[2J", "a tenant with a long name " * 5, "flood"]
    history = of(with_tenants(0.0, names), with_tenants(10.0, names))
    nodes = [Node(10**6, 10**5, 10.0**at, True, "long text " * 30) for at in range(12)]
    lines = shown(history, nodes)
    (row,) = [line.split() for line in lines if line.startswith("flood")]
    assert row == ["flood", "3,000", "90%", "2.0", "MiB", "3", "7"]
    (others,) = [line.split() for line in lines if line.startswith("2 others")]
    assert others[2:4] == ["1,000", "90%"]
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_a_tenant_alone_has_no_table() -> None:
    history = of(with_tenants(0.0, ["only"]), with_tenants(10.0, ["only"]))
    assert not any("Tenants" in line for line in shown(history))


def test_before_anything_was_asked_nothing_is_divided_by_zero() -> None:
    assert any("no prompts" in line for line in shown(of(reading(0.0))))


@pytest.mark.parametrize(
    ("seconds", "since_start", "words"),
    [(0, False, "90%"), (15, False, "80%"), (90, False, "80%"), (15, True, "89%")],
)
def test_the_screen_says_of_which_time_its_numbers_are(
    seconds: int, since_start: bool, words: str
) -> None:
    history = History(since_start=since_start)
    for at in range(seconds + 1):
        history.add(reading(float(at), computed=100 + at * 2, device=900 + at * 8))
    lines = shown(history)
    (share,) = [at for at, each in enumerate(lines) if each.startswith("Hit share")]
    period = {0: "since start", 15: "last 15 s", 90: "last minute"}[seconds]
    assert words in lines[share]
    assert lines[share + 1].startswith("since start" if since_start else period)


def test_after_a_restart_of_the_server_rates_begin_again() -> None:
    history = of(reading(50.0, computed=1000), reading(51.0, computed=2000))
    history.add(_restarted(52.0))
    assert len(history.readings) == 1
    assert history.rate(PROMPT) == 0.0


def _restarted(at: float) -> Reading:
    fresh = reading(at, computed=10)
    fresh.samples["radixserve_steps_total"] = [({}, 0.0)]
    return fresh


def test_texts_of_clients_cannot_move_the_cursor(server: Server) -> None:
    nodes = Source(server.url, None).prefixes()
    assert [(node.tokens, node.hits) for node in nodes] == [(120, 7), (150, 2)]
    lines = shown(of(reading(0.0)), nodes)
    assert any("You are … Hi··[2Jthere" in line for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_a_server_that_goes_away_is_told_and_the_last_numbers_stay(server: Server) -> None:
    watch = Watch(Source(server.url, None))
    watch.look()
    server.status = 500
    watch.look()
    assert watch.trouble == f"{server.url} answers 500 Internal Server Error"
    assert len(watch.history.readings) == 1
    assert shown(watch.history, watch.prefixes, watch.trouble)[0].startswith(server.url)
    server.status = 200
    watch.look()
    assert watch.trouble is None


def test_without_an_administrators_key_all_but_the_prefixes_is_shown(server: Server) -> None:
    server.tree_status = 403
    watch = Watch(Source(server.url, None))
    watch.look()
    assert watch.trouble is None
    assert "administrator" in str(watch.prefixes)
    assert any("administrator" in line for line in shown(watch.history, watch.prefixes))


def test_a_key_is_sent_and_its_absence_is_one_sentence(server: Server) -> None:
    server.key = "secret"
    Source(server.url, "secret").read()
    with pytest.raises(TopError, match="wants a valid key"):
        Source(server.url, None).read()


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http:///metrics", "http://[::1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(TopError, match="is not an http"):
        Source(url, None)


@pytest.mark.parametrize("name", ["a..b", "\u2603.invalid"])
def test_a_name_that_no_host_can_have_is_refused(name: str) -> None:
    with pytest.raises(TopError, match="no server answers"):
        Source(f"http://{name}", None).read()


@pytest.mark.parametrize("key", ["a\nb", "cl\u00e9"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(TopError, match="the key has characters") as refusal:
        Source("http://127.0.0.1:9", key)
    assert key not in str(refusal.value)


def test_another_server_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.metrics, "render", lambda *_: b"# TYPE up gauge\nup 1\n")
    with pytest.raises(TopError, match="is no radixserve"):
        Source(server.url, None).read()


# The command.


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "radixserve", "top", *args]


def test_without_a_terminal_one_screen_is_printed(server: Server) -> None:
    server.metrics.record(RequestRecord("chat", "stop", 100, 90, 3, 0.01, 0.02, 0.5, [0.1]))
    result = subprocess.run(
        command("--url", server.url), capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("radixserve ready")
    assert "tiny" in result.stdout
    assert "warm 20 ms" in result.stdout
    assert "You are" in result.stdout


def test_a_server_that_is_away_is_one_sentence(server: Server) -> None:
    result = subprocess.run(
        command("--url", "http://127.0.0.1:9"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("radixserve top: no server answers at http://127.0.0.1:9")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["q", "ctrl-c"])
def test_on_a_terminal_it_draws_again_until_it_is_ended(server: Server, ending: str) -> None:
    """The terminal is left as it was found."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    before = termios.tcgetattr(theirs)
    with usual_signals():
        process = subprocess.Popen(
            command("--url", server.url), stdin=theirs, stdout=theirs, stderr=theirs
        )
    screens = _read_until(ours, b"ends this", 2)
    if ending == "q":
        os.write(ours, b"q")
    else:
        process.send_signal(signal.SIGINT)
    screens += _read_for(ours, 0.5)
    assert process.wait(20) == 0
    assert b"tiny" in screens
    assert b"Traceback" not in screens
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def _read_until(terminal: int, word: bytes, count: int) -> bytes:
    found, until = b"", time.monotonic() + 60
    while found.count(word) < count and time.monotonic() < until:
        found += _read_for(terminal, 0.2)
    return found


def _read_for(terminal: int, seconds: float) -> bytes:
    if select.select([terminal], [], [], seconds)[0]:
        return os.read(terminal, 1 << 16)
    return b""

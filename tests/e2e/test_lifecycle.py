"""Start, death of the engine, drain and end of a real server; the model of no cost where its
answers do not matter.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from tests.e2e.server import Server, engines, running, tokenizers

LONG = 1500  # tokens; about a second
FAKE = ("--fake-model", "--served-model-name", "fake", "--threads", "1")


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    """One server for the tests after which it is as it was."""
    with running(*FAKE) as server:
        yield server


def status(server: Server, path: str) -> int:
    try:
        with urllib.request.urlopen(server.url + path, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def engine_pid(server: Server) -> int:
    (pid,) = engines(server)
    return pid


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def complete(server: Server, **fields: object) -> str:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        return client.completions.create(model="fake", prompt="hello", **fields).choices[0].text  # type: ignore[call-overload]


def test_a_killed_engine_is_replaced_and_a_live_request_goes_on(shared: Server) -> None:
    before = complete(shared, max_tokens=LONG)
    with going_on(shared) as texts:
        os.kill(engine_pid(shared), signal.SIGKILL)
        until(lambda: status(shared, "/health/ready") == 503)
        assert status(shared, "/health/live") == 200
    assert texts == [before]
    assert status(shared, "/health/ready") == 200
    assert 'radixserve_engine_restarts_total{cause="crash"} 1.0' in _metrics(shared)
    assert "radixserve_requests_resumed_total 1.0" in _metrics(shared)


def test_a_stopped_engine_is_replaced_and_delays_the_end_of_the_server_by_seconds_only() -> None:
    with running(*FAKE, "--hang-seconds", "2", "--drain-seconds", "1") as server:
        before = complete(server, max_tokens=LONG)
        with going_on(server) as texts:
            os.kill(engine_pid(server), signal.SIGSTOP)
            until(lambda: status(server, "/health/ready") == 503)
        assert texts == [before]
        assert 'radixserve_engine_restarts_total{cause="hang"} 1.0' in _metrics(server)
        os.kill(engine := engine_pid(server), signal.SIGSTOP)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 1 + 5
        assert not os.path.exists(f"/proc/{engine}")


@contextlib.contextmanager
def going_on(server: Server) -> Iterator[list[str]]:
    """A long answer that has begun when the block begins, and that is in the list after its end."""
    texts: list[str] = []
    waiting = threading.Thread(target=lambda: texts.append(complete(server, max_tokens=LONG)))
    waiting.start()
    until(lambda: "radixserve_requests_running 1.0" in _metrics(server))
    yield texts
    waiting.join()


def _metrics(server: Server) -> str:
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as response:
        return str(response.read().decode())


def test_sigterm_lets_a_running_stream_end_and_leaves_no_process() -> None:
    with running(*FAKE) as server:
        engine = engine_pid(server)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            stream = client.completions.create(
                model="fake", prompt="hello", max_tokens=2000, stream=True
            )
            next(iter(stream))
            server.process.send_signal(signal.SIGTERM)
            until(lambda: status(server, "/health/ready") == 503)
            with pytest.raises(openai.InternalServerError):
                client.completions.create(model="fake", prompt="late", max_tokens=1)
            rest = list(stream)
        assert rest[-1].choices[0].finish_reason == "length"
        assert server.process.wait(60) == 0
        until(lambda: not os.path.exists(f"/proc/{engine}"))


def test_an_interrupt_drains_as_sigterm_does_and_a_second_one_ends_everything_at_once() -> None:
    with running(*FAKE) as server:
        engine = engine_pid(server)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            stream = client.completions.create(
                model="fake", prompt="hello", max_tokens=8000, stream=True
            )
            next(iter(stream))
            server.process.send_signal(signal.SIGINT)
            until(lambda: status(server, "/health/ready") == 503)
            next(iter(stream))
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(10) == 130
        until(lambda: not os.path.exists(f"/proc/{engine}"))


def test_a_server_without_file_descriptors_serves_and_tells_its_health(shared: Server) -> None:
    """Idle connections make room for those that ask for something."""
    pid = shared.process.pid
    before = complete(shared, max_tokens=3)
    host, port = shared.url.removeprefix("http://").split(":")
    used = len(os.listdir(f"/proc/{pid}/fd"))
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as crowd:
        crowd.callback(resource.prlimit, pid, resource.RLIMIT_NOFILE, usual)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 5, usual[1]))
        for _ in range(50):
            crowd.enter_context(socket.create_connection((host, int(port))))
        for _ in range(3):
            assert status(shared, "/health/ready") == 200
            assert complete(shared, max_tokens=3) == before
    told = [line for line in shared.lines if "cannot be accepted" in line]
    assert len(told) <= 3  # at most one a minute, on a machine however slow
    assert complete(shared, max_tokens=3) == before


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGHUP])
def test_the_engine_does_not_outlive_a_killed_server(sig: int) -> None:
    with running(*FAKE) as server:
        engine = engine_pid(server)
        server.process.send_signal(sig)
        server.process.wait()
        until(lambda: not os.path.exists(f"/proc/{engine}"))


def _refused(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "radixserve", "serve", "--port", "0", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_model_that_is_not_there_is_one_line_and_exit_code_2() -> None:
    ended = _refused("--model", "./no/such/model")
    assert ended.returncode == 2
    assert "no/such/model" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_taken_port_is_one_line_and_exit_code_2(shared: Server) -> None:
    port = shared.url.rsplit(":", 1)[1]
    ended = _refused(*FAKE, "--port", port)
    assert ended.returncode == 2
    assert f":{port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_the_server_prints_can_be_pasted(shared: Server) -> None:
    until(lambda: any(line.startswith("try: curl") for line in shared.lines), 10)
    (line,) = [line for line in shared.lines if line.startswith("try: curl")]
    command = line.removeprefix("try: ").replace('"messages"', '"max_tokens": 3, "messages"')
    answer = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert json.loads(answer.stdout)["choices"][0]["message"]["role"] == "assistant"


LOOPS = (
    "{% for m in messages %}{% if m.content == 'loop' %}{% for i in range(99999) %}"
    "{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}{{ m.content }}{% endfor %}"
)


def test_a_chat_template_that_loops_stops_neither_others_nor_the_end(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(LOOPS)
    options = ("--chat-template", str(file), "--render-seconds", "2")
    with running(*FAKE, *options) as server:
        refusals: list[str] = []

        def chat(text: str) -> None:
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
            request = urllib.request.Request(
                f"{server.url}/v1/chat/completions",
                json.dumps({"model": "fake", **body}).encode(),
                {"Content-Type": "application/json"},
            )
            try:
                urllib.request.urlopen(request, timeout=60).close()
            except urllib.error.HTTPError as error:
                refusals.append(f"{error.code} {json.load(error)['error']['message']}")

        until(lambda: len(tokenizers(server)) == 2)
        looping = [threading.Thread(target=chat, args=["loop"]) for _ in range(2)]
        for thread in looping:
            thread.start()
        complete(server, max_tokens=1)
        chat("fine")
        for thread in looping:
            thread.join()
        assert [refusal.split()[0] for refusal in refusals] == ["400", "400"]
        assert "chat template" in refusals[0]
        assert "the limit of 2 s" in refusals[0]
        threading.Thread(target=chat, args=["loop"], daemon=True).start()
        time.sleep(0.5)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{% if %}", "does not compile"),
        (b"\xff\xfe", "no UTF-8 text"),
        (b" ", "is empty"),
        (None, "No such file"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_one_line_and_exit_code_2(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "template.jinja"
    if content is not None:
        file.write_bytes(content)
    ended = _refused(*FAKE, "--chat-template", str(file))
    assert ended.returncode == 2
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("radixserve: ")
    assert reason in last
    assert "Traceback" not in ended.stderr

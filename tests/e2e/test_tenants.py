"""Tenants of a real server: keys that are read again while an answer runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import openai
import pytest

from tests.e2e.server import START_SECONDS, Server, running
from tests.signals import usual_signals

FAKE = ("--fake-model", "--served-model-name", "fake", "--threads", "1")
pytestmark = pytest.mark.slow


def client(server: Server, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)


def reloaded(server: Server, words: str) -> None:
    """Send SIGHUP, and wait for a line with `words`."""
    seen = len(server.lines)
    server.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 30
    while not any(words in line for line in server.lines[seen:]):
        assert time.monotonic() < deadline, "the server said nothing"
        time.sleep(0.02)


def test_keys_are_read_again_and_no_answer_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("[tenants.a]\nkeys = ['key-a']\n[tenants.b]\nkeys = ['key-b']")
    with running(*FAKE, "--api-key-file", os.fspath(path)) as server:
        running_answer = client(server, "key-a").completions.create(
            model="fake", prompt="hello", max_tokens=1500, stream=True
        )
        first = next(iter(running_answer))
        path.write_text("[tenants.b]\nkeys = ['key-b', 'key-b2']")
        reloaded(server, "keys read again")
        path.write_text("nonsense")
        reloaded(server, "the keys stay as they were")
        texts = [first, *running_answer]
        assert texts[-1].choices[0].finish_reason == "length"
        for key in ("key-b", "key-b2"):
            client(server, key).completions.create(model="fake", prompt="hello", max_tokens=2)
        with pytest.raises(openai.AuthenticationError):
            client(server, "key-a").models.list()
        assert server.stop() == 0


def test_hangups_during_the_start_do_not_end_the_server_and_are_obeyed_in_the_end(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("[tenants.a]\nkeys = ['key-a']")
    log = tmp_path / "log"
    command = [sys.executable, "-m", "radixserve", "serve", "--port", "0", *FAKE]
    with usual_signals(), log.open("w") as out:
        process = subprocess.Popen([*command, "--api-key-file", path], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not all(words in log.read_text() for words in ("listening", "keys read again")):
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            if catches(process.pid, signal.SIGHUP):
                process.send_signal(signal.SIGHUP)
            time.sleep(0.02)
    finally:
        process.terminate()
        assert process.wait(60) == 0


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_another_tenant_never_hits_at_any_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("[tenants.a]\nkeys = ['key-a']\n[tenants.b]\nkeys = ['key-b']")
    words = "the same long prompt of all endpoints, again and again. " * 20
    with running(*FAKE, "--api-key-file", os.fspath(path)) as server:
        for endpoint in CACHED:
            text = f"{endpoint} {words}"
            assert cached(server, "key-a", endpoint, text) < FEW
            assert cached(server, "key-b", endpoint, text) < FEW
            assert cached(server, "key-a", endpoint, text) > 100
            assert cached(server, "key-b", endpoint, text) > 100
        forged = "public"
        assert cached(server, "key-b", "/v1/completions", f"x {words}", cache_salt="s") < FEW
        assert cached(server, "key-a", "/v1/completions", f"x {words}", cache_salt="s") < FEW
        assert cached(server, "key-b", "/v1/completions", f"x {words}", cache_salt="s") > 100
        assert cached(server, "key-a", "/v1/completions", f"x {words}", cache_salt=forged) < FEW


FEW = 50  # tokens of the chat template, which one tenant has at several endpoints
CACHED = {
    "/v1/chat/completions": ("messages", "prompt_tokens_details", "cached_tokens"),
    "/v1/completions": ("prompt", "prompt_tokens_details", "cached_tokens"),
    "/v1/responses": ("input", "input_tokens_details", "cached_tokens"),
    "/v1/messages": ("messages", "cache_read_input_tokens"),
}


def cached(server: Server, key: str, endpoint: str, text: str, **fields: str) -> int:
    """How many tokens the usage of an answer says were cached."""
    prompt, *where = CACHED[endpoint]
    value: object = [{"role": "user", "content": text}] if prompt == "messages" else text
    limit = "max_output_tokens" if endpoint == "/v1/responses" else "max_tokens"
    body = {"model": "fake", prompt: value, limit: 16, **fields}
    request = urllib.request.Request(
        server.url + endpoint,
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "x-api-key": key},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        usage = json.load(response)["usage"]
    for name in where:
        usage = usage[name]
    return int(usage)

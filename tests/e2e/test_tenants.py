"""Tenants of a real server: keys that are read again while an answer runs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import openai
import pytest

from tests.e2e.server import Server, running

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

"""The proxy of LiteLLM between the OpenAI client and the server."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import examples
from tests.clients.test_clients import ANSWER, labelled
from tests.e2e.server import Server

CONFIGURATION = "litellm_proxy.yaml"
KEY = "sk-of-the-proxy-itself-271828"
START_SECONDS = 120


@pytest.fixture
def proxy(server: Server, tmp_path: Path) -> Iterator[str]:
    """Its URL; it ends with the test."""
    packages = examples.environment_of(CONFIGURATION)
    examples.require(packages)
    file = tmp_path / CONFIGURATION
    text = (examples.EXAMPLES / CONFIGURATION).read_text()
    file.write_text(text.replace(examples.ADDRESS, server.url))
    port = free_port()
    command = [str(packages / "bin" / "litellm"), "--config", str(file), "--host", "127.0.0.1"]
    with (tmp_path / "proxy.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env=examples.surroundings(tmp_path, packages) | {"LITELLM_MASTER_KEY": KEY},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until_it_lives(process, f"http://127.0.0.1:{port}", tmp_path / "proxy.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    """A port that nobody listens on now; the proxy cannot choose one by itself."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until_it_lives(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Until the proxy answers; it imports for long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{url}/health/liveliness", timeout=10).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"the proxy did not start: {log.read_text()}")


def test_the_openai_client_chats_through_the_proxy(proxy: str, tmp_path: Path) -> None:
    said = labelled(examples.run("openai_python.py", proxy, tmp_path, key=KEY))
    assert said["chat"] == ANSWER
    assert said["stream"].replace("|", "") == ANSWER

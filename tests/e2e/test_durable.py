"""The cache outlives the server: a stop, kill -9 of everything, kill -9 of the engine; two servers
on one folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import Server, running
from tests.e2e.test_lifecycle import engine_pid

SYSTEM = "You are a helpful assistant. " + " ".join(
    f"Rule {i}: be brief, be kind, be exact." for i in range(30)
)
SMALL = ("--kv-budget", "256MiB", "--log-level", "warning")
STORED = (*SMALL, "--disk-budget", "200MiB", "--disk-path")


def ask(
    server: Server, question: str = "What is the capital of France?"
) -> tuple[str, dict[str, Any]]:
    """The answer and where its prompt was found."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    body = {"model": model(server), "messages": messages, "max_tokens": 12, "temperature": 0}
    answer = post(f"{server.url}/v1/chat/completions", body)
    details = answer["usage"]["prompt_tokens_details"]
    found = details["cached_tokens_details"] | {
        "all": details["cached_tokens"],
        "of": answer["usage"]["prompt_tokens"],
    }
    assert sum(details["cached_tokens_details"].values()) == details["cached_tokens"]
    return answer["choices"][0]["message"]["content"], found


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def model(server: Server) -> str:
    return str(json.loads(get(f"{server.url}/v1/models"))["data"][0]["id"])


def cache_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "radixserve", "cache", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@dataclass(frozen=True)
class Filled:
    """What a server that has stopped left behind: its folder, and the answer it gave."""

    folder: Path
    answer: str

    def copied(self, to: Path) -> Path:
        shutil.copytree(self.folder, to)
        return to


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    folder = tmp_path_factory.mktemp("durable") / "kv"
    with running(*STORED, str(folder)) as server:
        answer, found = ask(server)
        assert found["all"] == 0
        assert server.stop() == 0
    return Filled(folder, answer)


@pytest.mark.model
def test_the_cache_survives_a_stop_a_kill_of_everything_and_a_kill_of_the_engine(
    tmp_path: Path, filled: Filled
) -> None:
    options, expected = (*STORED, str(filled.copied(tmp_path / "kv"))), filled.answer
    with running(*options) as server:
        again, found = ask(server)
        assert again == expected
        assert (found["disk"], found["device"]) == (found["of"] - 1, 0)
        other, found = ask(server, "What is the capital of Italy?")
        assert found["device"] > 200
        page = get(f"{server.url}/metrics")
        assert f'radixserve_prompt_tokens_total{{source="disk"}} {float(found["of"] - 1)}' in page
        assert "radixserve_store_verify_failures_total 0.0" in page
        refused = subprocess.run(
            [sys.executable, "-m", "radixserve", "serve", "--port", "0", *options],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert refused.returncode == 2
        assert "in use by another process" in refused.stderr
        listed = cache_tool("ls", str(tmp_path / "kv"))
        assert listed.returncode == 0
        assert "runs," in listed.stdout
        pid = engine_pid(server)
        os.kill(pid, signal.SIGKILL)
        again, found = ask(server)
        assert again == expected
        assert found["disk"] == found["of"] - 1
        children = [server.process.pid, engine_pid(server)]
        for each in children:
            os.kill(each, signal.SIGKILL)
    checked = cache_tool("check", str(tmp_path / "kv"))
    assert "0 problems" in checked.stdout
    with running(*options) as server:
        assert ask(server)[0] == expected
        assert ask(server, "What is the capital of Italy?")[0] == other


@pytest.mark.model
def test_pins_outlive_the_server(tmp_path: Path, filled: Filled) -> None:
    options = (*STORED, str(filled.copied(tmp_path / "kv")))
    with running(*options) as server:
        _, found = ask(server)
        messages = [{"role": "system", "content": SYSTEM}]
        told = post(f"{server.url}/cache/pin", {"messages": messages, "ttl": 3600})
        assert (told["status"], told["tokens"] > 200) == ("accepted", True)
        for _ in range(100):
            if (tmp_path / "kv" / "pins.msgpack").exists():
                break
            time.sleep(0.1)
        for each in (server.process.pid, engine_pid(server)):
            os.kill(each, signal.SIGKILL)
    with running(*options) as server:
        (pin,) = json.loads(get(f"{server.url}/cache/pins"))["pins"]
        assert (pin["id"], pin["tokens"], pin["wanted"]) == (told["id"], 0, told["wanted"])
        assert pin["expires"] == pytest.approx(told["expires"], abs=60)
        again, found = ask(server)
        assert again == filled.answer
        assert found["disk"] == found["of"] - 1
        (pin,) = json.loads(get(f"{server.url}/cache/pins"))["pins"]
        assert pin["tokens"] == told["tokens"]
    assert "0 problems" in cache_tool("check", str(tmp_path / "kv")).stdout


@pytest.mark.model
def test_commands_beside_a_running_server(tmp_path: Path, filled: Filled) -> None:
    """A prefix of one folder goes to a server that runs with another, which is then cleared."""
    source, expected = str(filled.copied(tmp_path / "kv")), filled.answer
    first = next(
        line.split()[0] for line in cache_tool("ls", source).stdout.splitlines() if " 0-" in line
    )
    assert cache_tool("export", source, first, str(tmp_path / "file")).returncode == 0
    folder = str(tmp_path / "other")
    with running(*STORED, folder) as server:
        imported = cache_tool("import", folder, str(tmp_path / "file"))
        assert imported.returncode == 0, imported.stderr
        again, found = ask(server)
        assert again == expected
        assert found["disk"] == found["all"] > 200
        assert "0 problems removed" in cache_tool("check", "--fix", folder).stdout
        cleared = cache_tool("clear", folder)
        assert "runs removed" in cleared.stdout, cleared.stderr
        assert list((tmp_path / "other" / "runs").iterdir()) == []
        assert "radixserve_store_runs 0.0" in get(f"{server.url}/metrics")
        again, found = ask(server)
        assert again == expected
        assert found["device"] == found["all"] > 200
        assert server.stop() == 0


@pytest.mark.model
def test_host_memory_takes_what_the_device_has_no_room_for() -> None:
    with running(
        "--kv-budget", "32MiB", "--host-budget", "128MiB", "--log-level", "warning"
    ) as server:
        expected, _ = ask(server)
        for word in ("red", "green", "blue"):
            messages = [{"role": "user", "content": " ".join(f"{word} {i}" for i in range(90))}]
            post(
                f"{server.url}/v1/chat/completions",
                {"model": model(server), "messages": messages, "max_tokens": 2},
            )
        again, found = ask(server)
        assert again == expected
        assert found["host"] > 0
        assert found["device"] + found["host"] == found["of"] - 1


def test_tiers_without_a_cache_are_refused() -> None:
    command = [sys.executable, "-m", "radixserve", "serve", "--no-cache", "--host-budget", "1GiB"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert "host_budget" in refused.stderr

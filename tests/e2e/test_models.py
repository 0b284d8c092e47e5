"""Two models in a real server, each in an engine process of its own, under one K/V budget."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.server import Server, engines, running

FAKES = ("--fake-model", "--model", "a=auto", "--model", "b=auto")


@pytest.fixture(scope="module")
def fakes() -> Iterator[Server]:
    with running(*FAKES, "--kv-budget", "1MiB", "--spare-engine", "off") as started:
        yield started


def get(url: str, body: Any = None) -> str:
    """The answer's text; with `body` to a POST of it as JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def ask(server: Server, model: str, prompt: str, most: int = 4) -> str:
    body = {"model": model, "prompt": prompt, "max_tokens": most, "temperature": 0}
    answer = json.loads(get(f"{server.url}/v1/completions", body))
    return str(answer["choices"][0]["text"])


def shared(server: Server) -> Any:
    return json.loads(get(f"{server.url}/config?model=a"))["shared_kv_budget"]


def test_each_model_begins_with_an_equal_part_of_the_budget(fakes: Server) -> None:
    told = shared(fakes)
    assert (told["total"], told["parts"]) == (1 << 20, {"a": 1 << 19, "b": 1 << 19})
    assert len(engines(fakes)) == 2


def test_the_death_of_one_engine_leaves_the_other_models_streams_alone(fakes: Server) -> None:
    expected = {name: ask(fakes, name, "hello", 2000) for name in "ab"}
    answers: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda n=name: answers.update({n: ask(fakes, n, "hello", 2000)}))
        for name in "ab"
    ]
    for each in threads:
        each.start()
    first, second = engines(fakes)
    os.kill(first, signal.SIGKILL)
    for each in threads:
        each.join()
    assert answers == expected
    assert second in engines(fakes)
    page = get(f"{fakes.url}/metrics")
    deaths = [each for each in page.splitlines() if each.startswith("radixserve_engine_restarts")]
    assert sorted(float(each.split()[-1]) for each in deaths) == [0.0, 0.0, 0.0, 1.0]


def test_a_model_that_is_refused_ends_the_start_with_its_name() -> None:
    command = [sys.executable, "-m", "radixserve", "serve", "--port", "0", *FAKES]
    ended = subprocess.run(
        [*command, "--max-model-len", "1000000"], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    told = ended.stderr.splitlines()[-1]
    assert told.startswith(("radixserve: a: max_model_len", "radixserve: b: max_model_len"))


@pytest.mark.model
def test_memory_follows_the_traffic_and_answers_stay_the_same() -> None:
    budget = ("--kv-budget", "24MiB", "--kv-budget-min", "8MiB", "--spare-engine", "off")
    with running("--model", "a=auto", "--model", "b=auto", *budget) as server:
        prompts = [f"{number} {'word ' * 100}" for number in range(4)]
        expected = [ask(server, "a", prompt) for prompt in prompts]
        until = time.monotonic() + 60
        while shared(server)["parts"]["b"] < 15 << 20 and time.monotonic() < until:
            assert [ask(server, "b", prompt) for prompt in prompts] == expected
        told = shared(server)
        assert told["parts"]["b"] >= 15 << 20
        assert sum(told["parts"].values()) <= told["total"] == 24 << 20
        assert (told["moves"][0]["giver"], told["moves"][0]["taker"]) == ("a", "b")
        assert ask(server, "a", prompts[0]) == expected[0]

"""A client that leaves while the real model writes the arguments of a call: the engine stops, all
its slots are free or cached, and the next good request gets the right answer. In every dialect.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.e2e.server import Server
from tests.e2e.test_nothing_is_lost import gauges

pytestmark = pytest.mark.model

PARAMETERS = {
    "type": "object",
    "properties": {"text": {"type": "string", "minLength": 4000}},
    "required": ["text"],
    "additionalProperties": False,
}
"""Arguments that take the model minutes."""
STATES = ("free", "cached", "leased", "budget")
MESSAGES = [{"role": "user", "content": "Write down everything you know of France."}]
FUNCTION = {"name": "write", "parameters": PARAMETERS}
CHAT = {
    "messages": MESSAGES,
    "max_tokens": 1500,
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": "required",
}
RESPONSE = {
    "input": MESSAGES,
    "max_output_tokens": 1500,
    "tools": [{"type": "function"} | FUNCTION],
    "tool_choice": "required",
}
MESSAGE = {
    "model": "SmolLM2-135M-Instruct",
    "messages": MESSAGES,
    "max_tokens": 1500,
    "tools": [{"name": "write", "input_schema": PARAMETERS}],
    "tool_choice": {"type": "any"},
}


@pytest.mark.parametrize(
    ("path", "body", "begun"),
    [
        ("/v1/chat/completions", CHAT, '"tool_calls"'),
        ("/v1/responses", RESPONSE, "response.function_call_arguments.delta"),
        ("/v1/messages", MESSAGE, "input_json_delta"),
    ],
)
def test_the_engine_stops_and_gives_back_every_slot(
    server: Server, client: openai.OpenAI, path: str, body: dict[str, Any], begun: str
) -> None:
    aborted = f'radixserve_requests_total{{endpoint="{path.split("/")[2]}",outcome="abort"}}'
    before = gauges(server).get(aborted, 0)
    leave_when(server, path, body, begun)
    wait_until(lambda now: now.get(aborted, 0) == before + 1, server)
    answer = client.chat.completions.create(
        model="SmolLM2-135M-Instruct",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
    )
    assert answer.choices[0].message.content == "The capital of France is Paris."
    wait_until(nothing_runs, server)


def nothing_runs(now: dict[str, float]) -> bool:
    kv = {state: now[f'radixserve_kv_bytes{{state="{state}"}}'] for state in STATES}
    all_back = kv["free"] + kv["cached"] == kv["budget"]
    return not now["radixserve_requests_running"] and not kv["leased"] and all_back


def wait_until(holds: Callable[[dict[str, float]], bool], server: Server) -> None:
    deadline = time.monotonic() + 30
    while not holds(gauges(server)):
        assert time.monotonic() < deadline, gauges(server)
        time.sleep(0.05)


def leave_when(server: Server, path: str, body: dict[str, Any], begun: str) -> None:
    """Ask for a stream, and close the connection when a line of it contains `begun`."""
    text = json.dumps(body | {"stream": True}).encode()
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(server.url + path, text, headers)
    with urllib.request.urlopen(asked, timeout=60) as response:
        while begun not in (line := response.readline().decode()):
            assert line, "the stream ended without a call"

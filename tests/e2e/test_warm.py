"""`--warm FILE` with a real server and the real model: at the start, and after the engine died;
what is pinned is computed again then, too.
"""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.e2e.server import Server, engines, running

SYSTEM = "You answer questions about the tides of the North Sea in one short sentence. " * 8
BODY = {
    "messages": [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "When is high tide?"},
    ]
}


TALE = {"prompt": "Once upon a time there was a lighthouse that stood where no sea was. " * 12}


def post(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def pinned(server: Server) -> dict[str, Any]:
    with urllib.request.urlopen(server.url + "/cache/pins", timeout=60) as response:
        (pin,) = json.load(response)["pins"]
    return dict(pin)


def missing_tokens(server: Server) -> int:
    told = post(server, "/cache/explain", BODY)
    missing: int = told["prompt_tokens"] - told["matched_tokens"]
    return missing


def test_a_server_is_ready_with_its_prompts_and_gets_them_again_after_a_death(
    tmp_path: Path,
) -> None:
    path = tmp_path / "warm.jsonl"
    path.write_text(json.dumps(BODY) + '\n{"prompt": 5}\n')
    with running("--warm", str(path), "--kv-budget", "64MiB", "--log-level", "info") as server:
        log = "".join(server.lines)
        assert f"{path}, line 2 is not warmed" in log
        assert f"warmed 1 of 2 prompts of {path}" in log
        assert missing_tokens(server) == 1
        usage = post(server, "/v1/chat/completions", {**BODY, "max_tokens": 1})["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert cached == usage["prompt_tokens"] - 1

        post(server, "/cache/warm", TALE)
        told = post(server, "/cache/pin", {**TALE, "ttl": 3600})
        assert told["tokens"] == told["wanted"] > 100

        (pid,) = engines(server)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while f"warmed 1 of 1 prompts of {path}" not in "".join(server.lines):
            assert time.monotonic() < deadline, "it was not warmed again"
            time.sleep(0.1)
        assert missing_tokens(server) == 1
        log = "".join(server.lines)
        assert "warmed 1 of 1 pinned prefixes in " in log
        assert log.index("warmed 1 of 1 pinned") < log.index(f"warmed 1 of 1 prompts of {path}")
        after = pinned(server)
        assert (after["tokens"], after["id"]) == (told["tokens"], told["id"])
        assert after["hits"] == 0, "warming does not renew it"
        assert server.stop() == 0

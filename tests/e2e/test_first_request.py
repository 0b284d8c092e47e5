"""What a newcomer sees: the lines that a server prints, and a first request without parameters."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from radixserve.checkpoints.embedded import embedded_model
from tests.e2e.server import Server, running

pytestmark = pytest.mark.model
MODEL = "SmolLM2-135M-Instruct"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def printed(server: Server, awaited: str) -> str:
    """All that it has printed, as soon as `awaited` is in it."""
    deadline = time.monotonic() + 20
    while awaited not in "".join(server.lines) and time.monotonic() < deadline:
        time.sleep(0.05)
    return "".join(server.lines)


def test_the_lines_that_a_server_prints_can_be_typed(server: Server) -> None:
    lines = printed(server, "radixserve chat")
    found = re.search(r"^try: (curl .*)$", lines, re.MULTILINE)
    assert found is not None
    curl = subprocess.run(shlex.split(found[1]), capture_output=True, timeout=60, check=True)
    [choice] = json.loads(curl.stdout)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (ANSWER, "stop")
    assert f"radixserve chat --url {server.url}\n" in lines


def test_without_parameters_the_embedded_model_is_greedy_and_the_log_says_so(
    server: Server,
) -> None:
    answers = [
        post(server.url, "/v1/chat/completions", {"model": MODEL, "messages": FRANCE})
        for _ in range(3)
    ]
    texts = {answer["choices"][0]["message"]["content"] for answer in answers}
    assert texts == {ANSWER}
    applied = "temperature=0(default) top_p=1(default) max_tokens=512(default)"
    lines = printed(server, applied)
    assert applied in lines
    assert "defaults of requests: those that come with the embedded model" in lines


def test_a_fine_tune_whose_tokenizer_alone_names_the_end_of_a_turn_stops(tmp_path: Path) -> None:
    """Trainers leave the base model's end of text in config.json."""
    folder = tmp_path / "fine-tune"
    folder.mkdir()
    for file in embedded_model().iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
        elif file.name != "generation_config.json":
            shutil.copy(file, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 0, "pad_token_id": 0}))
    with running("--model", str(folder), "--kv-budget", "64MiB") as fine_tune:
        body = {"model": "fine-tune", "messages": FRANCE, "temperature": 0, "max_tokens": 80}
        [choice] = post(fine_tune.url, "/v1/chat/completions", body)["choices"]
        lines = printed(fine_tune, "radixserve chat")
    assert (choice["message"]["content"], choice["finish_reason"]) == (ANSWER, "stop")
    assert "OpenAI's, since the model has no generation_config.json" in lines
    assert "is no stop token" not in lines

    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokens | {"eos_token": "<|endoftext|>"})
    )
    with running("--model", str(folder), "--kv-budget", "64MiB") as forgetful:
        lines = printed(forgetful, "radixserve chat")
    assert "ends the assistant's turn with '<|im_end|>' (token 2), which is no stop" in lines

"""Public prefixes with real servers: computed once for all tenants, from every tier, with the same
answers as without a cache; what follows them stays private.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import Server, running

pytestmark = pytest.mark.slow

SYSTEM = "You answer questions about the tides of the North Sea, in one short sentence. " * 6
MODEL = ("--served-model-name", "any")
ENDPOINTS = {
    "/v1/chat/completions": ("prompt_tokens_details", "cached_tokens"),
    "/v1/completions": ("prompt_tokens_details", "cached_tokens"),
    "/v1/responses": ("input_tokens_details", "cached_tokens"),
    "/v1/messages": ("cache_read_input_tokens",),
}


def files(folder: Path) -> tuple[str, ...]:
    """The options that name a file of two tenants and one of two public prefixes."""
    keys, public = folder / "keys.toml", folder / "public.jsonl"
    keys.write_text("[tenants.a]\nkeys = ['key-a']\n[tenants.b]\nkeys = ['key-b']\n")
    chat = {"messages": [{"role": "system", "content": SYSTEM}]}
    public.write_text(f"{json.dumps(chat)}\n{json.dumps({'prompt': SYSTEM})}\n")
    return ("--api-key-file", os.fspath(keys), "--public-prefix", os.fspath(public))


def body_of(path: str, question: str, **more: Any) -> dict[str, Any]:
    user, system = {"role": "user", "content": question}, {"role": "system", "content": SYSTEM}
    fields: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [system, user], "max_tokens": 8},
        "/v1/completions": {"prompt": SYSTEM + question, "max_tokens": 8},
        "/v1/responses": {"instructions": SYSTEM, "input": question, "max_output_tokens": 16},
        "/v1/messages": {"system": SYSTEM, "messages": [user], "max_tokens": 8},
    }
    return {"model": "any", "temperature": 0, **fields[path], **more}


def ask(server: Server, key: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        server.url + path,
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "x-api-key": key},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def cached(answer: dict[str, Any], path: str) -> int:
    value = answer["usage"]
    for name in ENDPOINTS[path]:
        value = value[name]
    return int(value)


def test_pairs_of_tenants_at_every_endpoint(tmp_path: Path) -> None:
    with running("--fake-model", *MODEL, "--threads", "1", *files(tmp_path)) as server:
        least = 90  # tokens of SYSTEM
        ask(server, "key-a", "/v1/chat/completions", body_of("/v1/chat/completions", "first"))
        ask(server, "key-a", "/v1/completions", body_of("/v1/completions", "first"))
        for path in ENDPOINTS:
            long = f"{path} and a long question that nobody else has asked. " * 5
            first, other, again = (
                cached(ask(server, key, path, body_of(path, long)), path)
                for key in ("key-a", "key-b", "key-a")
            )
            assert least <= other <= first <= least + 20  # "a" has a few more tokens of its own
            assert again > first + 40
            if path != "/v1/messages":
                salted = body_of(path, long, cache_salt=path)
                assert cached(ask(server, "key-b", path, salted), path) < 20


CHAT = "/v1/chat/completions"
LOGPROBS = {"logprobs": True, "top_logprobs": 3}


@pytest.fixture(scope="module")
def expected() -> Iterator[list[Any]]:
    """What a server without a cache answers."""
    with running(*MODEL, "--no-cache", "--kv-budget", "64MiB") as server:
        yield [answer_of(ask(server, "", CHAT, each)) for each in questions()]


def questions() -> list[dict[str, Any]]:
    words = ("When is high tide?", "And when is the next low tide after that one, in Bremen?")
    return [body_of(CHAT, each, **LOGPROBS) for each in words]


def answer_of(answer: dict[str, Any]) -> Any:
    choice = answer["choices"][0]
    return choice["message"]["content"], choice["logprobs"]


@pytest.mark.model
@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_a_hit_of_another_tenant_equals_a_miss(
    tmp_path: Path, tier: str, expected: list[Any]
) -> None:
    small = ("--kv-budget", "24MiB" if tier == "host" else "64MiB")  # 520 tokens, or 1400
    below = {
        "device": (),
        "host": ("--host-budget", "64MiB"),
        "disk": ("--disk-path", str(tmp_path / "kv")),
    }[tier]
    options = (*MODEL, *files(tmp_path), *small, *below)
    with running(*options) as server:
        first = ask(server, "key-a", CHAT, questions()[0])
        assert answer_of(first) == expected[0]
        if tier == "host":  # drive it out of the device
            for number in range(3):
                other = f"{number} is what this other prompt begins with. " * 30
                ask(server, "key-a", "/v1/completions", {"prompt": other, "max_tokens": 1})
        if tier != "disk":
            asked_by_another(server, expected)
        assert server.stop() == 0
    if tier == "disk":
        with running(*options) as server:
            asked_by_another(server, expected)


def asked_by_another(server: Server, expected: list[Any]) -> None:
    for body, answer in zip(questions(), expected, strict=True):
        got = ask(server, "key-b", CHAT, body)
        assert answer_of(got) == answer
        num_prompt = got["usage"]["prompt_tokens"]
        assert num_prompt - 40 < cached(got, CHAT) < num_prompt - 5


def test_a_file_that_cannot_be_used_ends_the_start(tmp_path: Path) -> None:
    options = files(tmp_path)
    Path(options[-1]).write_text('{"prompt": "fine"}\n{"prompt": 5}\n')
    message = f"line 2 of {options[-1]} cannot be used"
    with pytest.raises(AssertionError, match=message), running("--fake-model", *options):
        pass

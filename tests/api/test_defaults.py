"""What a request gets that names no value of its own, and what becomes of one that asks for more
than there is room for; at both endpoints, streamed and whole.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import msgspec
import pytest

from radixserve.api.app import ApiSettings
from radixserve.defaults import Defaults
from radixserve.request import Sampling
from tests.api.conftest import CHAT, COMPLETIONS, MODEL, Server, body_for
from tests.fakes import EOS

DEFAULTS = Defaults(
    temperature=0.25,
    top_p=0.5,
    top_k=7,
    min_p=0.125,
    presence_penalty=0.5,
    frequency_penalty=-0.5,
    repetition_penalty=1.25,
    chat_max_tokens=6,
    completion_max_tokens=5,
    stop_token_ids=(EOS, 200, 9999),
    source="a test",
)
OWN: dict[str, Any] = {
    "temperature": 1,
    "top_p": 1,
    "top_k": -1,
    "min_p": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
}

both = pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
stream = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture
def settings() -> ApiSettings:
    return ApiSettings(max_body_bytes=64 * 1024, defaults=DEFAULTS)


def bare(path: str, **more: Any) -> dict[str, Any]:
    """A body that names no number of tokens."""
    body = body_for(path, **more)
    del body["max_tokens"]
    return body


async def ask(server: Server, path: str, body: dict[str, Any]) -> tuple[Sampling, str]:
    """What the engine was asked for, and the finish reason that the client saw."""
    async with server.session.post(server.url + path, json=body) as response:
        text = await response.text()
        assert response.status == 200, text
    if body.get("stream"):
        lines = [line.removeprefix("data: ") for line in text.split("\n\n")]
        answers = [json.loads(line) for line in lines if line.startswith("{")]
    else:
        answers = [json.loads(text)]
    reasons = [c["finish_reason"] for answer in answers for c in answer["choices"]]
    return server.engine.seen[-1].sampling, next(filter(None, reasons))


@both
@stream
async def test_defaults_fill_in_what_a_request_leaves_out(
    server: Server, path: str, stream: bool
) -> None:
    sampling, finish = await ask(server, path, bare(path, stream=stream))
    assert {name: getattr(sampling, name) for name in OWN} == {
        name: getattr(DEFAULTS, name) for name in OWN
    }
    assert (sampling.max_tokens, finish) == (6 if path == CHAT else 5, "length")
    assert sampling.stop_token_ids == (EOS, 200)  # the third is beyond the vocabulary


@both
@stream
async def test_the_values_of_a_request_win(server: Server, path: str, stream: bool) -> None:
    body = body_for(path, **OWN, stream=stream, ignore_eos=True)
    sampling, _ = await ask(server, path, body)
    plain = Sampling(max_tokens=4, seed=sampling.seed)
    assert sampling == plain


@stream
@pytest.mark.parametrize(
    ("path", "field"),
    [(CHAT, "max_tokens"), (CHAT, "max_completion_tokens"), (COMPLETIONS, "max_tokens")],
)
async def test_more_tokens_than_there_is_room_for_are_cut_to_it(
    server: Server, path: str, stream: bool, field: str
) -> None:
    info = server.engine.info
    assert info is not None
    for limits in ({"context_length": 40, "max_request_tokens": 40}, {"max_request_tokens": 33}):
        server.engine.info = msgspec.structs.replace(info, **limits)
        body = bare(path, stream=stream, min_tokens=8000) | {field: 8192}
        sampling, finish = await ask(server, path, body)
        left = limits["max_request_tokens"] - len(server.engine.seen[-1].prompt_ids)
        assert (sampling.max_tokens, sampling.min_tokens, finish) == (left, left, "length")


@both
async def test_a_request_that_exactly_fits_is_served_and_one_token_more_refused(
    server: Server, path: str
) -> None:
    await ask(server, path, body_for(path))
    num_prompt = len(server.engine.seen[-1].prompt_ids)
    info = server.engine.info
    assert info is not None
    server.engine.info = msgspec.structs.replace(info, max_request_tokens=num_prompt + 1)
    sampling, _ = await ask(server, path, body_for(path, stream=False))
    assert sampling.max_tokens == 1
    server.engine.info = msgspec.structs.replace(info, max_request_tokens=num_prompt)
    status, answer = await server.post(path, body_for(path))
    assert (status, answer["error"]["code"]) == (400, "kv_budget_exceeded")
    server.engine.info = msgspec.structs.replace(
        info, max_request_tokens=num_prompt, context_length=num_prompt
    )
    status, answer = await server.post(path, body_for(path))
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_prompt_alone_may_fill_the_context(server: Server) -> None:
    info = server.engine.info
    assert info is not None
    for limits, code in (
        ({"context_length": 20, "max_request_tokens": 20}, "context_length_exceeded"),
        ({"num_slots": 20, "max_request_tokens": 21}, "kv_budget_exceeded"),
    ):
        server.engine.info = msgspec.structs.replace(info, **limits)
        body = body_for(COMPLETIONS, echo=True, logprobs=1) | {"max_tokens": 0}
        status, answer = await server.post(COMPLETIONS, body | {"prompt": "x" * 20})
        assert (status, answer["choices"][0]["text"]) == (200, "x" * 20)
        status, answer = await server.post(COMPLETIONS, body | {"prompt": "x" * 21})
        assert (status, answer["error"]["code"]) == (400, code)


@both
async def test_a_default_number_of_tokens_gives_way_to_min_tokens(
    server: Server, path: str
) -> None:
    sampling, _ = await ask(server, path, bare(path, min_tokens=20))
    assert (sampling.min_tokens, sampling.max_tokens) == (20, 20)


@both
async def test_the_log_line_tells_what_applied(
    server: Server, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "radixserve.api"):
        await server.post(path, bare(path, temperature=0, min_p=0))
        await server.post(path, body_for(path, **OWN) | {"max_tokens": 8192})
    first, second = (record.getMessage() for record in caplog.records)
    assert first.endswith(
        " temperature=0 top_p=0.5(default) top_k=7(default) presence_penalty=0.5(default) "
        "frequency_penalty=-0.5(default) repetition_penalty=1.25(default) "
        f"max_tokens={6 if path == CHAT else 5}(default)"
    )
    left = 512 - len(server.engine.seen[-1].prompt_ids)
    assert second.endswith(f" temperature=1 top_p=1 max_tokens={left}(clamped)")


async def test_version_shows_the_defaults(server: Server) -> None:
    _, answer = await server.get("/version")
    assert answer["defaults"] == json.loads(msgspec.json.encode(DEFAULTS))


async def test_the_length_that_is_told_is_what_the_budget_holds(server: Server) -> None:
    info = server.engine.info
    assert info is not None
    server.engine.info = msgspec.structs.replace(info, max_request_tokens=100)
    _, models = await server.get("/v1/models")
    _, tokens = await server.post("/tokenize", {"model": MODEL, "prompt": "a"})
    assert {*(each["max_model_len"] for each in models["data"]), tokens["max_model_len"]} == {100}

"""Bodies that are bad at every endpoint: each is refused in the endpoint's dialect, and the next
good request gets its usual answer, at that endpoint and at every one that generates.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tests.api.conftest import (
    CHAT,
    GENERATING,
    MESSAGES,
    MODEL,
    RESPONSES,
    Server,
    body_for,
    reference,
    text_of,
)
from tests.api.test_bad_inputs import ALL, INPUT_TOKENS, good_body
from tests.api.test_messages_bad_inputs import COUNT_TOKENS
from tests.fakes import INFO

EVERY = (*ALL, MESSAGES, COUNT_TOKENS)
with_every_endpoint = pytest.mark.parametrize("path", EVERY)


def good(path: str) -> dict[str, Any]:
    if path == COUNT_TOKENS:
        return {"model": MODEL, "messages": [{"role": "user", "content": "abc"}]}
    return body_for(path) if path == MESSAGES else good_body(path)


def raw_with(path: str, member: str) -> bytes:
    """A good body and one more member, written as given."""
    return json.dumps(good(path)).encode()[:-1] + b", " + member.encode() + b"}"


async def usual(server: Server, path: str) -> Any:
    """What the endpoint answers to its good body, without what differs from answer to answer."""
    status, answer = await server.post(path, good(path))
    assert status == 200, answer
    return text_of(path, answer) if path in GENERATING else answer


async def assert_refused(
    server: Server, path: str, raw: bytes | dict[str, Any], named: str
) -> None:
    """400 in the envelope of the endpoint's dialect, with `named` in its message."""
    before = await usual(server, path)
    num_seen = len(server.engine.seen)
    status, answer = await server.post(path, raw)
    assert status == 400, answer
    error = answer["error"]
    if path in (MESSAGES, COUNT_TOKENS):
        assert set(answer) == {"type", "error", "request_id"}
        assert set(error) == {"type", "message"}
    else:
        assert set(answer) == {"error"}
        assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]
    assert len(json.dumps(answer)) < 1200
    assert len(server.engine.seen) == num_seen, "it has reached the engine"
    assert server.engine.live == {}
    assert await usual(server, path) == before
    for other in GENERATING:
        assert await usual(server, other) == reference(other)


@pytest.mark.parametrize(
    ("member", "named"),
    [
        ('"x": ' + "[" * 5_000 + "]" * 5_000, ""),
        ('"x": ' + '{"a":' * 5_000 + "1" + "}" * 5_000, ""),
        ('"model": ' + "[" * 20_000 + "]" * 20_000, ""),
        ('"model": ' + "9" * 5_000, "model"),
        ('"model": 1e999', "model"),
        ('"model": -Infinity', "JSON"),
        ('"model": "\\ud800"', "JSON"),
        ('"model": true', "model"),
        ('"model": {"a": 1}', "model"),
        ('"no_such_field": NaN', "no_such_field"),
        ('"no_such_field": null', "no_such_field"),
        ('"No_such_Field": 1', "No_such_Field"),
        ('"": 1', "Unknown field"),
        ('"\\u0000": 1', "Unknown field"),
        ('"' + "y" * 3_000 + '": 1', "Unknown field"),
        ('"__class__": {"__init__": 1}', "__class__"),
        ('"a": 1} {"b": 2', ""),
    ],
    ids=lambda value: value[:24],
)
@with_every_endpoint
async def test_a_bad_member_is_refused(server: Server, path: str, member: str, named: str) -> None:
    await assert_refused(server, path, raw_with(path, member), named)


@pytest.mark.parametrize("empty", [None, [], {}, "", 0])
@with_every_endpoint
async def test_each_member_may_not_be_of_another_kind(
    server: Server, path: str, empty: Any
) -> None:
    """What every endpoint needs: its prompt, its messages or its tokens."""
    (name,) = {"messages", "prompt", "input", "tokens"} & good(path).keys()
    is_text = name in ("prompt", "input") and path != CHAT
    if (is_text and empty == "") or (name == "tokens" and empty == []):
        return  # a prompt of no text: each endpoint has its own answer
    if path == "/tokenize" and empty is None:
        return  # stands for a prompt that was left out
    await assert_refused(server, path, good(path) | {name: empty}, "")


@with_every_endpoint
async def test_of_a_key_written_twice_the_last_counts(server: Server, path: str) -> None:
    raw = raw_with(path, f'"model": "none", "model": {json.dumps(MODEL)}')
    status, answer = await server.post(path, raw)
    assert status == 200, answer


@with_every_endpoint
async def test_json_is_read_whatever_content_type_it_claims(server: Server, path: str) -> None:
    raw = json.dumps(good(path)).encode()
    for kind in ("text/plain", "application/json; charset=nonsense", "application/xml"):
        status, answer = await server.post(path, raw, headers={"Content-Type": kind})
        assert status == 200, answer


@with_every_endpoint
async def test_a_nul_character_is_text(server: Server, path: str) -> None:
    text = json.dumps(good(path)).replace("abc", "a\\u0000c").encode()
    status, answer = await server.post(path, text)
    assert status == 200, answer
    if path in GENERATING:
        assert 0 in server.engine.seen[-1].prompt_ids
    await usual(server, path)


@pytest.mark.parametrize(
    "limits",
    [
        {"context_length": 8, "max_request_tokens": 8},
        {"num_slots": 8, "max_request_tokens": 8},
    ],
    ids=["context", "K/V budget"],
)
@pytest.mark.parametrize("path", [*GENERATING, INPUT_TOKENS])
async def test_a_prompt_that_can_never_fit_is_refused_by_the_name_of_its_field(
    server: Server, path: str, limits: dict[str, int]
) -> None:
    text = json.dumps(good(path)).replace("abc", "a" * 9)
    server.engine.info = msgspec.structs.replace(INFO, **limits)
    status, answer = await server.post(path, text.encode())
    assert status == 400, answer
    if path == MESSAGES:
        assert answer["error"]["message"].startswith("prompt is too long: ")
    else:
        (name,) = {"messages", "prompt", "input"} & good(path).keys()
        assert answer["error"]["param"] == name
    server.engine.info = INFO
    for other in GENERATING:
        assert await usual(server, other) == reference(other)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
@with_every_endpoint
async def test_another_method_is_told_the_right_one(server: Server, path: str, method: str) -> None:
    if path == INPUT_TOKENS:
        return  # could be the address of a stored response, which has other methods
    async with server.session.request(method, server.url + path) as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert "error" in await response.json()
    await usual(server, path)


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
async def test_a_failure_midway_ends_the_stream_and_the_next_request_is_answered(
    server: Server, path: str
) -> None:
    server.engine.fail_at = 2
    async with server.session.post(server.url + path, json=good(path) | {"stream": True}) as answer:
        assert answer.status == 200
        text = await answer.text()
    last = text.strip().rpartition("\n\n")[2]
    assert "the fake failed" in last
    assert "[DONE]" not in text
    server.engine.fail_at = None
    for other in GENERATING:
        assert await usual(server, other) == reference(other)

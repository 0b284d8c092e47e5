"""Bodies that nobody thought of: no answer is ever a 5xx, none hangs, and the server
keeps serving.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from yarl import URL

from radixserve.api.address import take_address
from radixserve.api.anthropic.wire import CountTokensBody, MessagesBody
from radixserve.api.app import ApiSettings, make_app
from radixserve.api.context import Api
from radixserve.api.listen import Listener
from radixserve.api.openai.responses.wire import ResponsesBody
from radixserve.api.openai.wire import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from radixserve.config import Settings
from radixserve.metrics import Metrics
from tests.api.conftest import (
    CHAT,
    COMPLETIONS,
    GENERATING,
    MESSAGES,
    MODEL,
    RESPONSES,
    body_for,
    reference,
    text_of,
)
from tests.fakes import EOS, FakeEngine, LocalTokenizer

COUNT_TOKENS = f"{MESSAGES}/count_tokens"
BODIES = {
    CHAT: ChatBody,
    COMPLETIONS: CompletionBody,
    MESSAGES: MessagesBody,
    COUNT_TOKENS: CountTokensBody,
    RESPONSES: ResponsesBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}
ENDS = {
    MESSAGES: 'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    RESPONSES: "}\n\n",
}
EDGES = [
    -1,
    0,
    1,
    2,
    5,
    20,
    257,
    258,
    2**31,
    2**63 - 1,
    2**63,
    -(2**63),
    10**30,
    0.0,
    1e-300,
    0.5,
    1.0,
    2.0,
    1e308,
]
WORDS = [
    "",
    "a",
    "text",
    "user",
    "system",
    "developer",
    "assistant",
    "tool",
    "tool_use",
    "tool_result",
    "thinking",
    "function",
    "custom",
    "message",
    "reasoning",
    "function_call",
    "function_call_output",
    "input_text",
    "json_schema",
    MODEL,
    "\0",
    "é😀",
    "<eos>",
    "x" * 9000,
]
NAMES = [
    "role",
    "content",
    "type",
    "text",
    "image_url",
    "name",
    "input",
    "input_schema",
    "tool_use_id",
    "cache_control",
    "include_usage",
    "call_id",
    "arguments",
    "output",
    "summary",
    "json_schema",
    "5",
    "97",
    "-1",
    "\0",
]

leaves = (
    st.none()
    | st.booleans()
    | st.sampled_from(EDGES)
    | st.integers()
    | st.sampled_from(WORDS)
    | st.text()
)
values = st.recursive(
    leaves | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)


def some_body(path: str) -> st.SearchStrategy[Any]:
    """A good body with any of its fields, and unknown ones, replaced by anything."""
    good = (
        {"tokens": [1]}
        if path == "/detokenize"
        else {"prompt": "x"}
        if path == "/tokenize"
        else {"messages": [{"role": "user", "content": "x"}]}
        if path == COUNT_TOKENS
        else body_for(path)
    )
    names = st.sampled_from(sorted(BODIES[path].__struct_fields__)) | st.text(max_size=5)
    # few at a time: the first mistake hides the others
    return st.dictionaries(names, values, max_size=3).map(lambda changed: {**good, **changed})


@pytest.fixture(scope="module")
def front(tokenizer: LocalTokenizer) -> Any:
    """One server and its own event loop for all examples; gives a function that asks it."""
    loop = asyncio.new_event_loop()
    engine = FakeEngine()
    settings = ApiSettings(max_body_bytes=1 << 16, lingering_seconds=0.1)
    app = make_app(Api.of(engine, tokenizer, Metrics(), settings, (MODEL,)))
    address = take_address(Settings(port=0))
    listener = Listener(app, address)

    async def start() -> aiohttp.ClientSession:
        await listener.start()
        return aiohttp.ClientSession()

    async def ask(path: str, raw: bytes, method: str) -> tuple[int, str, str]:
        async with (
            asyncio.timeout(20),
            session.request(method, URL(address.url + path, encoded=True), data=raw) as response,
        ):
            return response.status, response.content_type, await response.text()

    async def stop() -> None:
        await session.close()
        await listener.close()

    session = loop.run_until_complete(start())

    def run(path: str, raw: bytes = b"", method: str = "POST") -> tuple[int, str, str, FakeEngine]:
        return (*loop.run_until_complete(ask(path, raw, method)), engine)

    yield run
    loop.run_until_complete(stop())
    loop.close()


def check(front: Any, path: str, raw: bytes) -> None:
    status, content_type, text, engine = front(path, raw)
    assert status in (200, 400, 404, 413), text
    if content_type == "text/event-stream":
        assert text.endswith(ENDS.get(path, "data: [DONE]\n\n"))
    elif status == 200:
        json.loads(text)
    else:
        check_envelope(text, path)
    assert engine.live == {}
    for sampling in (request.sampling for request in engine.seen):
        assert 1 <= sampling.max_tokens < 512
        assert 0 <= sampling.seed < 2**63
    check_serves(front)


def check_envelope(text: str, path: str = "") -> None:
    envelope = json.loads(text)
    error = envelope["error"]
    if "/v1/messages/" in f"{path}/":
        assert set(envelope) == {"type", "error", "request_id"}
        assert set(error) == {"message", "type"}
    else:
        assert set(error) == {"message", "type", "param", "code"}
    assert len(text.encode()) < 4096


def check_serves(front: Any) -> None:
    """The next good request gets its usual answer."""
    for good in GENERATING:
        status, _, text, engine = front(good, json.dumps(body_for(good)).encode())
        assert (status, text_of(good, json.loads(text))) == (200, reference(good))
    engine.seen.clear()


@pytest.mark.parametrize("path", BODIES)
def test_no_body_ends_in_a_server_error(front: Any, path: str) -> None:
    @hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(some_body(path) | values)
    @example([])
    @example({"model": MODEL})
    def any_body(body: Any) -> None:
        check(front, path, json.dumps(body).encode())

    any_body()


@pytest.mark.parametrize("path", BODIES)
def test_no_bytes_end_in_a_server_error(front: Any, path: str) -> None:
    good = json.dumps(body_for(path) if path in GENERATING else {"prompt": "x"}).encode()

    @hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, len(good)), st.binary(max_size=4), st.integers(0, 8))
    def any_bytes(at: int, inserted: bytes, num_removed: int) -> None:
        check(front, path, good[:at] + inserted + good[at + num_removed :])

    any_bytes()


METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"]
PATHS = [
    *BODIES,
    "/",
    "/v1/models",
    f"/v1/models/{MODEL}",
    "/v1/models/",
    "/health",
    "/health/ready",
    "/health/live",
    "/metrics",
    "/version",
    "/v1/chat/completions/",
    "//metrics",
    "/..%2f..%2fetc/passwd",
]


def test_no_method_and_path_end_in_a_server_error(front: Any) -> None:
    paths = st.sampled_from(PATHS) | st.text(max_size=20).map(lambda text: "/" + quote(text))
    queries = st.just("") | st.text(max_size=20).map(lambda text: "?" + quote(text))

    @hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(METHODS), paths, queries, st.sampled_from([b"", b"{}", b"x" * 99]))
    def any_request(method: str, path: str, query: str, raw: bytes) -> None:
        status, _, text, engine = front(path + query, raw, method)
        assert status < 500, text
        if status >= 400 and method != "HEAD":
            check_envelope(text, path)
        assert engine.live == {}
        check_serves(front)

    any_request()


common: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": st.integers(1, 12),
    "n": st.integers(1, 3),
    "seed": st.integers(0, 9),
    "min_tokens": st.integers(0, 3),
    "ignore_eos": st.booleans(),
    "stop": st.lists(st.text("abé€", min_size=1, max_size=3), max_size=3) | st.sampled_from("ab"),
    "stop_token_ids": st.lists(st.integers(0, 257), max_size=3),
}
own: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    CHAT: {
        "logprobs": st.just(True),
        "top_logprobs": st.integers(0, 3),
        "add_generation_prompt": st.booleans(),
        "continue_final_message": st.booleans(),
    },
    COMPLETIONS: {
        "max_tokens": st.integers(0, 12),
        "logprobs": st.integers(0, 5),
        "echo": st.booleans(),
        "prompt": st.sampled_from(["abc", "é€", ["a", "bé"]]) | st.just([97, 0xC3, 0xA9, EOS]),
    },
}
tokens = st.lists(
    st.sampled_from([*b"abc", *"é€😀".encode(), EOS, EOS + 1]), min_size=12, max_size=12
)


@pytest.mark.parametrize("path", own)
def test_any_good_answer_is_the_same_streamed_and_counts_its_tokens(front: Any, path: str) -> None:
    @hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.fixed_dictionaries({}, optional=common | own[path]), tokens, st.integers(1, 12))
    def any_answer(fields: dict[str, Any], answer: list[int], tokens_per_event: int) -> None:
        body = body_for(path) | fields
        engine = front(path, b"")[3]
        plain = engine.answer
        engine.answer = lambda request: answer[: request.sampling.max_tokens]
        engine.tokens_per_event = tokens_per_event
        try:
            status, _, text, _ = front(path, json.dumps(body).encode())
            streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
            stream_status, _, events, _ = front(path, json.dumps(streamed).encode())
        finally:
            engine.answer, engine.tokens_per_event = plain, 1
        assert status == stream_status
        assert engine.live == {}
        if status == 200:
            whole = json.loads(text)
            check_counts(path, body, whole)
            assert joined(path, events) == (outcome(path, whole["choices"]), whole["usage"])
        else:
            check_envelope(text)

    any_answer()
    check_serves(front)


def entries(path: str, choice: Any) -> list[Any]:
    """Of each token with logprobs everything that is said of it."""
    found = choice["logprobs"] or {}
    if path == CHAT:
        return list(found.get("content", []))
    return list(zip(*found.values(), strict=True))


def outcome(path: str, choices: list[Any]) -> list[tuple[Any, ...]]:
    return [
        (text_of(path, {"choices": [c]}), c["finish_reason"], entries(path, c)) for c in choices
    ]


def joined(path: str, events: str) -> tuple[list[tuple[Any, ...]], Any]:
    """The same of a stream, and its usage."""
    lines = [line.removeprefix("data: ") for line in events.split("\n\n")]
    assert lines[-2:] == ["[DONE]", ""]
    *chunks, last = [json.loads(line) for line in lines[:-2]]
    found: dict[int, list[Any]] = {}
    for choice in (chunk["choices"][0] for chunk in chunks):
        text = choice["delta"].get("content") or "" if path == CHAT else choice["text"]
        whole = found.setdefault(choice["index"], ["", None, []])
        assert whole[1] is None, "nothing follows a finish reason"
        whole[:] = whole[0] + text, choice["finish_reason"], whole[2] + entries(path, choice)
    return [tuple(found[index]) for index in sorted(found)], last["usage"]


def check_counts(path: str, body: dict[str, Any], whole: Any) -> None:
    """One entry for every counted token, those of an echoed prompt included."""
    if body.get("logprobs") is None:
        return
    usage, num_choices = whole["usage"], body.get("n", 1)
    echoed = usage["prompt_tokens"] * num_choices if body.get("echo") else 0
    num_entries = sum(len(entries(path, choice)) for choice in whole["choices"])
    assert num_entries == usage["completion_tokens"] + echoed

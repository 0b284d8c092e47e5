"""Bodies that nobody thought of: no answer is ever a 5xx, none hangs, and the server
keeps serving.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from radixserve.api.app import ApiSettings, make_app
from radixserve.api.wire import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from radixserve.metrics import Metrics
from tests.api.conftest import CHAT, COMPLETIONS, MODEL, body_for, reference, text_of
from tests.fakes import FakeEngine, LocalTokenizer

BODIES = {
    CHAT: ChatBody,
    COMPLETIONS: CompletionBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
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
    "include_usage",
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
        else body_for(path)
    )
    names = st.sampled_from(sorted(BODIES[path].__struct_fields__)) | st.text(max_size=5)
    # few at a time: the first mistake hides the others
    return st.dictionaries(names, values, max_size=3).map(lambda changed: {**good, **changed})


@pytest.fixture(scope="module")
def front(tokenizer: LocalTokenizer) -> Any:
    """One server and its own event loop for all examples; gives a function that posts."""
    loop = asyncio.new_event_loop()
    engine = FakeEngine()
    app = make_app(engine, tokenizer, Metrics(), ApiSettings(max_body_bytes=1 << 16), (MODEL,))
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, lingering_time=0.1)

    async def start() -> aiohttp.ClientSession:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}")

    async def post(path: str, raw: bytes) -> tuple[int, str, str]:
        async with asyncio.timeout(20), session.post(path, data=raw) as response:
            return response.status, response.content_type, await response.text()

    async def stop() -> None:
        await session.close()
        await runner.cleanup()

    session = loop.run_until_complete(start())
    yield lambda path, raw: (*loop.run_until_complete(post(path, raw)), engine)
    loop.run_until_complete(stop())
    loop.close()


def check(front: Any, path: str, raw: bytes) -> None:
    status, content_type, text, engine = front(path, raw)
    assert status in (200, 400, 404, 413), text
    if content_type == "text/event-stream":
        assert text.endswith("data: [DONE]\n\n")
    elif status == 200:
        json.loads(text)
    else:
        error = json.loads(text)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert len(text.encode()) < 4096
    assert engine.live == {}
    for sampling in (request.sampling for request in engine.seen):
        assert 1 <= sampling.max_tokens < 512
        assert 0 <= sampling.seed < 2**63
    engine.seen.clear()
    for good in (CHAT, COMPLETIONS):
        status, _, text, _ = front(good, json.dumps(body_for(good)).encode())
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
    good = json.dumps(body_for(path) if path in (CHAT, COMPLETIONS) else {"prompt": "x"}).encode()

    @hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, len(good)), st.binary(max_size=4), st.integers(0, 8))
    def any_bytes(at: int, inserted: bytes, num_removed: int) -> None:
        check(front, path, good[:at] + inserted + good[at + num_removed :])

    any_bytes()

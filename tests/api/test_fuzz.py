"""Bodies that nobody thought of: no answer is ever a 5xx, none hangs, and the server keeps serving.

The bodies are made anew in every run; a failure shows the one that caused it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from yarl import URL

from radixserve.api.address import take_address
from radixserve.api.app import ApiSettings, make_app
from radixserve.api.context import Api
from radixserve.api.listen import Listener
from radixserve.config import Settings
from radixserve.metrics import Metrics
from tests.api.bodies import Bodies
from tests.api.conftest import (
    CHAT,
    COMPLETIONS,
    GENERATING,
    MESSAGES,
    MODEL,
    body_for,
    reference,
    text_of,
)
from tests.fakes import EOS, FakeEngine, LocalTokenizer

NUM_BODIES = 5200
AT_ONCE = 8
METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"]
GOOD: dict[str, dict[str, Any]] = {path: body_for(path) for path in GENERATING}
GOOD |= {"/tokenize": {"prompt": "x"}, "/detokenize": {"tokens": [97]}}

Reply = tuple[int, str, str]  # status, content type, text


class Front:
    """One server and its own event loop for all examples."""

    def __init__(self, tokenizer: LocalTokenizer) -> None:
        self.engine = FakeEngine()
        settings = ApiSettings(max_body_bytes=1 << 16, lingering_seconds=0.1)
        self.app = make_app(Api.of(self.engine, tokenizer, Metrics(), settings, (MODEL,)))
        self._address = take_address(Settings(port=0))
        self._listener = Listener(self.app, self._address)
        self._loop = asyncio.new_event_loop()
        self._session = self._loop.run_until_complete(self._start())

    async def _start(self) -> aiohttp.ClientSession:
        await self._listener.start()
        return aiohttp.ClientSession()

    async def _stop(self) -> None:
        await self._session.close()
        await self._listener.close()

    async def _reply(self, path: str, raw: bytes, method: str) -> Reply:
        url = URL(self._address.url + path, encoded=True)
        async with asyncio.timeout(20), self._session.request(method, url, data=raw) as response:
            return response.status, response.content_type, await response.text()

    def ask(self, path: str, raw: bytes = b"", method: str = "POST") -> Reply:
        """The reply to one request."""
        return self._loop.run_until_complete(self._reply(path, raw, method))

    def ask_all(self, asked: list[tuple[str, bytes]]) -> list[Reply]:
        """The replies to requests that are sent at the same time."""

        async def all_of_them() -> list[Reply]:
            return await asyncio.gather(*(self._reply(path, raw, "POST") for path, raw in asked))

        return self._loop.run_until_complete(all_of_them())

    def close(self) -> None:
        self._loop.run_until_complete(self._stop())
        self._loop.close()

    def check_serves(self) -> None:
        """The next good request gets its usual answer."""
        for good in GENERATING:
            status, _, text = self.ask(good, json.dumps(GOOD[good]).encode())
            assert (status, text_of(good, json.loads(text))) == (200, reference(good))
        self.engine.seen.clear()


@pytest.fixture(scope="module")
def front(tokenizer: LocalTokenizer) -> Iterator[Front]:
    made = Front(tokenizer)
    yield made
    made.close()


def paths_of(front: Front, method: str | None = None) -> list[str]:
    """A path for each endpoint that takes `method`."""
    found = [
        re.sub(r"{.*?}", "x", route.resource.canonical)
        for route in front.app.router.routes()
        if route.resource is not None and method in (None, route.method)
    ]
    return sorted(set(found))


def types_of(front: Front, monkeypatch: pytest.MonkeyPatch) -> dict[str, type | None]:
    """For each path that takes a body: the type into which the endpoint decodes it."""
    found: dict[str, type | None] = {}
    decode = msgspec.json.decode

    def noting(raw: bytes, **how: Any) -> Any:
        found[path] = how["type"]
        return decode(raw, **how)

    with monkeypatch.context() as patch:
        patch.setattr(msgspec.json, "decode", noting)
        for path in paths_of(front, "POST"):
            found[path] = None
            front.ask(path, b"{}")
    return found


@pytest.mark.slow
def test_no_body_ends_in_a_server_error(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    known = types_of(front, monkeypatch)
    assert {path for path, body_type in known.items() if body_type is not None} >= GOOD.keys()
    random = Random()
    bodies = {path: Bodies(random, each, GOOD.get(path)) for path, each in known.items()}
    statuses: dict[str, Counter[int]] = {path: Counter() for path in known}
    weights = [10 if body_type is not None else 1 for body_type in known.values()]
    for _ in range(NUM_BODIES // AT_ONCE):
        paths = random.choices(list(known), weights, k=AT_ONCE)
        asked = [(path, bodies[path].draw()) for path in paths]
        for (path, raw), reply in zip(asked, front.ask_all(asked), strict=True):
            check(reply, path, f"{path} {raw!r}")
            statuses[path][reply[0]] += 1
            if reply[0] == 200 and known[path] is not None:
                bodies[path].keep(raw)
        check_engine(front.engine)
        if random.random() < 0.2:
            front.check_serves()
    front.check_serves()
    for path in GOOD:  # both kinds of bodies were drawn
        assert statuses[path][200] > 50, statuses
        assert statuses[path][400] > 50, statuses


def check(reply: Reply, path: str, asked: str) -> None:
    """An answer, whole or streamed, or a refusal in the envelope."""
    status, content_type, text = reply
    assert status in (200, 400, 404, 413), f"{asked}: {status} {text}"
    if status != 200:
        check_envelope(text, path)
    elif content_type == "text/event-stream":
        events = [event.rpartition("data: ")[2] for event in text.split("\n\n") if event]
        for event in events:
            assert event == "[DONE]" or "error" not in json.loads(event), f"{asked}: {event}"
    else:
        json.loads(text)


def check_envelope(text: str, path: str) -> None:
    envelope = json.loads(text)
    if f"{path}/".startswith(f"{MESSAGES}/"):
        assert set(envelope) == {"type", "error", "request_id"}
        assert set(envelope["error"]) - {"details"} == {"message", "type"}
    else:
        assert set(envelope["error"]) == {"message", "type", "param", "code"}
    assert len(text.encode()) < 4096


def check_engine(engine: FakeEngine) -> None:
    """Nothing was left behind, and only what an engine can compute was asked of it."""
    assert engine.live == {}
    for sampling in (request.sampling for request in engine.seen):
        assert 1 <= sampling.max_tokens < 512
        assert 0 <= sampling.seed < 2**63
    engine.seen.clear()


def test_no_method_and_path_end_in_a_server_error(front: Front) -> None:
    # The events of the page go on until the client leaves; tests/api/ui has their tests.
    ending = [path for path in paths_of(front) if path != "/ui/events"]
    known = [*ending, f"/v1/models/{MODEL}", "//metrics", "/..%2f..%2fetc/passwd"]
    paths = st.sampled_from([*known, *(f"{path}/" for path in known)]) | st.text(max_size=20).map(
        lambda text: "/" + quote(text)
    )
    queries = st.just("") | st.text(max_size=20).map(lambda text: "?" + quote(text))

    @hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(METHODS), paths, queries, st.sampled_from([b"", b"{}", b"x" * 99]))
    def any_request(method: str, path: str, query: str, raw: bytes) -> None:
        status, _, text = front.ask(path + query, raw, method)
        assert status < 500, text
        if status >= 400 and method != "HEAD":
            check_envelope(text, path)
        check_engine(front.engine)

    any_request()
    front.check_serves()


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
def test_any_good_answer_is_the_same_streamed_and_counts_its_tokens(
    front: Front, path: str
) -> None:
    @hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.fixed_dictionaries({}, optional=common | own[path]), tokens, st.integers(1, 12))
    def any_answer(fields: dict[str, Any], answer: list[int], tokens_per_event: int) -> None:
        body = body_for(path) | fields
        engine = front.engine
        plain = engine.answer
        engine.answer = lambda request: answer[: request.sampling.max_tokens]
        engine.tokens_per_event = tokens_per_event
        try:
            status, _, text = front.ask(path, json.dumps(body).encode())
            streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
            stream_status, _, events = front.ask(path, json.dumps(streamed).encode())
        finally:
            engine.answer, engine.tokens_per_event = plain, 1
        assert status == stream_status
        assert engine.live == {}
        if status == 200:
            whole = json.loads(text)
            check_counts(path, body, whole)
            assert joined(path, events) == (outcome(path, whole["choices"]), whole["usage"])
        else:
            check_envelope(text, path)

    any_answer()
    front.check_serves()


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

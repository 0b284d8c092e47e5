"""Two models behind one server: each request reaches the model that it names, and no other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from radixserve.api.address import take_address
from radixserve.api.app import make_app
from radixserve.api.context import Api
from radixserve.api.listen import Listener
from radixserve.api.settings import ApiSettings
from radixserve.config import Settings
from radixserve.front.shared_budget import SharedBudget
from radixserve.questions import Drop
from radixserve.top.source import Source, TopError
from tests.api.conftest import CHAT, GENERATING, MESSAGES, MODEL, KeepingMetrics, Server, body_for
from tests.fakes import FakeEngine, LocalTokenizer

OTHER = "other/model"


@pytest.fixture
async def second() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def two(
    tokenizer: LocalTokenizer, settings: ApiSettings, second: FakeEngine
) -> AsyncIterator[Server]:
    """A server with MODEL and OTHER, the engine of which is `second`."""
    first, metrics = FakeEngine(), KeepingMetrics(MODEL)
    api = Api.of(first, tokenizer, metrics, settings, (MODEL,))
    api = replace(api, shared_budget=SharedBudget(1000, {MODEL: first}, lambda name: None))
    other = api.beside(second, tokenizer, KeepingMetrics(OTHER), settings, (OTHER, "other-*"))
    address = take_address(Settings(port=0))
    listener = Listener(make_app(api, other), address)
    await listener.start()
    async with aiohttp.ClientSession() as session:
        yield Server(first, metrics, session, address.url, address.port, api)
    await listener.close()


async def sent(server: Server, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    async with server.session.request(method, server.url + path, json=body) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("path", GENERATING)
async def test_a_request_reaches_the_model_that_it_names_which_the_answer_tells(
    two: Server, second: FakeEngine, path: str
) -> None:
    for name, told, engine in (
        (MODEL, MODEL, two.engine),
        (OTHER, OTHER, second),
        ("other-1", OTHER, second),
    ):
        seen = len(engine.seen)
        status, answer = await two.post(path, body_for(path) | {"model": name})
        assert (status, answer["model"]) == (200, told)
        assert len(engine.seen) == seen + 1
    assert (len(two.engine.seen), len(second.seen)) == (1, 2)


@pytest.mark.parametrize("path", GENERATING)
async def test_a_request_without_a_model_or_with_an_unknown_one_is_refused_by_name(
    two: Server, second: FakeEngine, path: str
) -> None:
    unnamed = {name: value for name, value in body_for(path).items() if name != "model"}
    status, answer = await two.post(path, unnamed)
    assert (status, "'model'" in answer["error"]["message"]) == (400, True)
    status, answer = await two.post(path, unnamed | {"model": "no-such"})
    assert status == 404
    assert all(name in answer["error"]["message"] for name in ("no-such", MODEL, OTHER))
    status, answer = await two.post(path, b"{")
    assert (status, "JSON" in answer["error"]["message"]) == (400, True)
    assert not two.engine.seen
    assert not second.seen


async def test_both_models_are_listed(two: Server) -> None:
    _, listed = await two.get("/v1/models")
    assert [each["id"] for each in listed["data"]] == [MODEL, OTHER]
    status, one = await two.get(f"/v1/models/{OTHER}")
    assert (status, one["root"]) == (200, OTHER)
    assert (await two.get("/v1/models/no-such"))[0] == 404
    _, version = await two.get("/version")
    assert [each["model"] for each in version["models"]] == [MODEL, OTHER]
    assert (await two.get("/"))[1]["models"] == [MODEL, OTHER]


@pytest.mark.parametrize("model", ["", "?model=no-such"])
async def test_a_cache_is_dropped_only_where_its_model_is_named(
    two: Server, second: FakeEngine, model: str
) -> None:
    for method, path in (("POST", "/flush_cache"), ("DELETE", "/cache"), ("PUT", "/config")):
        status, answer = await sent(two, method, path + model)
        assert (status, answer["error"]["param"]) == (404 if model else 400, "model")
    for path in ("/cache", "/cache/tree", "/cache/pins", "/config", "/ui/events"):
        assert (await two.get(path + model))[0] == (404 if model else 400)
    assert not two.engine.asked
    assert not second.asked


async def test_the_query_names_the_model_whose_cache_is_meant(
    two: Server, second: FakeEngine
) -> None:
    status, _ = await sent(two, "POST", f"/flush_cache?model={OTHER}")
    assert (status, two.engine.asked, second.asked) == (200, [], [Drop()])
    status, _ = await sent(two, "PUT", f"/config?model={OTHER}", {"max_running": 3})
    assert status == 200
    for name, most in ((MODEL, 16), (OTHER, 3)):
        _, shown = await two.get(f"/config?model={name}")
        assert shown["settings"]["max_running"]["value"] == most


async def test_the_shared_budget_is_shown_and_not_changed_by_hand(two: Server) -> None:
    _, shown = await two.get(f"/config?model={OTHER}")
    assert shown["shared_kv_budget"] == {"total": 1000, "parts": {MODEL: 1000}, "moves": []}
    path = f"/config?model={OTHER}"
    status, answer = await sent(two, "PUT", path, {"kv_budget": 4096})
    assert (status, answer["error"]["param"]) == (400, "kv_budget")


async def test_the_server_is_ready_when_all_models_are(two: Server, second: FakeEngine) -> None:
    assert (await two.get("/health"))[0] == 200
    second.unready_reason = "restarting"
    status, answer = await two.get("/health")
    assert (status, f"restarting ({OTHER})" in answer["error"]["message"]) == (503, True)
    assert (await two.post(CHAT, body_for(CHAT)))[0] == 200


async def test_numbers_are_told_by_model(two: Server, second: FakeEngine) -> None:
    await two.post(MESSAGES, body_for(MESSAGES) | {"model": OTHER})
    async with two.session.get(two.url + "/metrics") as response:
        page = (await response.text()).splitlines()
    assert len([line for line in page if line.startswith("# TYPE radixserve_requests_total")]) == 1
    labels = 'endpoint="messages",model="{}",outcome="length"'
    for name, count in ((MODEL, 0), (OTHER, 1)):
        line = f"radixserve_requests_total{{{labels.format(name)}}} {count}.0"
        assert line in page, [each for each in page if "requests_total" in each]
    assert len([each for each in page if each.startswith("process_open_fds ")]) == 1
    assert f'radixserve_engine_up{{model="{OTHER}"}} 1.0' in page


async def test_the_page_is_that_of_one_model_and_names_the_others(two: Server) -> None:
    async with two.session.get(two.url + "/ui") as page:  # which follows redirections
        assert (page.status, page.url.query["model"]) == (200, MODEL)
    events = f"{two.url}/ui/events?model={OTHER}"
    async with two.session.get(events) as stream:
        line = await stream.content.readuntil(b"\n\n")
        told = json.loads(line.removeprefix(b"data: "))["server"]
        assert (told["model"], told["others"]) == (OTHER, [MODEL])


async def test_one_of_the_models_is_watched_in_a_terminal(two: Server) -> None:
    await two.post(MESSAGES, body_for(MESSAGES) | {"model": OTHER})
    source = Source(two.url, None, OTHER)
    read = await asyncio.to_thread(source.read)
    assert read.sum("radixserve_requests_total") == 1
    assert read.sum("radixserve_requests_total", model=MODEL) == 0
    for model, told in ((None, "choose one with --model"), ("x", "not x")):
        with pytest.raises(TopError, match=f"serves {MODEL}, {OTHER}.*{told}"):
            await asyncio.to_thread(Source(two.url, None, model).read)
    nodes = await asyncio.to_thread(source.prefixes)
    assert all(node.tokens for node in nodes)


async def test_a_model_is_not_chosen_where_nothing_is_asked_of_one(two: Server) -> None:
    assert (await sent(two, "DELETE", "/v1/responses/1"))[0] == 404
    assert (await sent(two, "POST", "/no/such/path"))[0] == 404

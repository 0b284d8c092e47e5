"""The files of the page, and the events that it gets, over the fake engine."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Any

import aiohttp
import pytest

from radixserve.api.settings import ApiSettings
from radixserve.api.ui import events
from radixserve.api.ui.history import SECONDS, History
from radixserve.api.ui.live import MAX_ENDED, MAX_SHOWN, LiveRequests
from radixserve.api.ui.tenants import MAX_TENANTS, TenantNow
from radixserve.cache.counters import TENANT_KV_BYTES
from radixserve.engine.counters import (
    COMPUTED,
    EVICTED,
    LOSS_TOKENS,
    PROMPT_TOKENS,
    TENANT_PROMPT_TOKENS,
    TENANT_REQUESTS,
)
from radixserve.front.generation import Generation
from radixserve.front.stream import Stream
from radixserve.request import Request, Sampling
from radixserve.step import EngineStats
from radixserve.tiers.counters import TIER_BYTES
from tests.api.conftest import CHAT, GENERATING, MODEL, Server, body_for
from tests.fakes import FakeEngine

OURS = [each for each in (files("radixserve") / "ui").iterdir() if each.is_file()]


async def told(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The events of an open stream."""
    async for line in response.content:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


async def test_the_page_and_each_of_its_files_are_served_with_a_strict_policy(
    server: Server,
) -> None:
    async with server.session.get(server.url + "/ui") as response:
        page = await response.text()
        assert response.content_type == "text/html"
    for path in re.findall(r'(?:src|href)="(ui/[^"]+)"', page):
        async with server.session.get(f"{server.url}/{path}") as response:
            assert response.status == 200, path
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
            assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "..%2Fapp.py", "d3.LICENSE"])
async def test_other_files_are_not_served(server: Server, name: str) -> None:
    status, answer = await server.get(f"/ui/{name}")
    assert (status, answer["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("file", OURS, ids=lambda each: each.name)
def test_nothing_is_loaded_from_elsewhere(file: Any) -> None:
    text = file.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http://" not in text
    assert "https://" not in text
    assert "innerHTML" not in text  # text of users must not become elements


@pytest.mark.parametrize("path", GENERATING)
async def test_a_request_of_any_endpoint_is_told_while_it_runs_and_when_it_has_ended(
    server: Server, path: str
) -> None:
    server.engine.hold_at, server.engine.num_cached = 2, 3
    asking = asyncio.create_task(server.post(path, body_for(path)))
    await server.engine.held.wait()
    async with server.session.get(server.url + "/ui/events") as response:
        news = told(response)
        first = await anext(news)
        (running,) = first["requests"]
        assert first["server"]["model"] == MODEL
        assert running["cached"] == 3
        assert "outcome" not in running
        server.engine.go_on.set()
        await asking
        (ended,) = (await anext(news))["requests"]
    assert ended["id"] == running["id"]
    assert ended["began"] <= ended["first_token"] <= ended["ended"]
    assert ended["outcome"] in ("stop", "length")


async def test_the_first_event_carries_the_history_and_later_ones_what_is_new(
    server: Server,
) -> None:
    async with server.session.get(server.url + "/ui/events") as response:
        news = told(response)
        await anext(news)
        times = [sample["at"] for _ in range(2) for sample in (await anext(news))["samples"]]
    assert times == sorted(set(times))
    async with server.session.get(server.url + "/ui/events") as response:
        first = await anext(told(response))
    assert [sample["at"] for sample in first["samples"]][: len(times)] == times


async def test_the_stream_ends_when_the_server_drains(server: Server) -> None:
    async with server.session.get(server.url + "/ui/events") as response:
        news = told(response)
        await anext(news)
        server.engine.unready_reason = "draining"
        assert [each async for each in news] == []
    status, told_why = await server.get("/ui/events")
    assert (status, told_why["error"]["code"]) == (503, "server_not_ready")


async def test_pages_are_bounded_and_a_closed_one_makes_room(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_PAGES", 1)
    async with server.session.get(server.url + "/ui/events") as response:
        await anext(told(response))
        assert (await server.get("/ui/events"))[0] == 503
    async with asyncio.timeout(5):
        while True:
            async with server.session.get(server.url + "/ui/events") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)


class TestWithKey:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(api_key="secret")

    async def test_the_page_needs_no_key_and_its_data_do(self, server: Server) -> None:
        async with server.session.get(server.url + "/ui") as response:
            assert response.status == 200
        assert (await server.get("/ui/events"))[0] == 401
        key = {"Authorization": "Bearer secret"}
        async with server.session.get(server.url + "/ui/events", headers=key) as response:
            assert (await anext(told(response)))["state"] == "ready"


def test_requests_that_ended_are_kept_up_to_a_bound_and_told_once() -> None:
    live = LiveRequests()
    for number in range(MAX_ENDED + 50):
        sampling = Sampling(max_tokens=1, seed=1)
        asked = Request(id=f"r{number}", prompt_ids=[1], sampling=sampling, tenant="research")
        generation = Generation("chat", f"r{number}", [Stream(asked)])
        live.begin(generation)
        live.end(generation, "stop")
    shown = live.since(0)
    assert len(shown) == min(MAX_ENDED, MAX_SHOWN)
    assert (shown[-1].id, shown[-1].tenant) == (f"r{MAX_ENDED + 49}", "research")
    assert live.since(live.num_ended) == []


def test_history_takes_differences_and_survives_a_new_engine() -> None:
    engine = FakeEngine()
    history = History(engine)
    expected = [(100, 0), (40, 160), (5, 10)]
    for computed, cached in [(100, 0), (140, 160), (5, 10)]:  # the third counts from zero
        numbers = {
            PROMPT_TOKENS.key(COMPUTED): computed,
            PROMPT_TOKENS.key("host"): cached,
            LOSS_TOKENS.key(EVICTED): computed,
            TIER_BYTES.key("host", "used"): 5,
            TIER_BYTES.key("host", "budget"): 7,
        }
        engine.stats = EngineStats(numbers=dict(numbers))
        history.sample()
    assert [(each.computed, each.cached) for each in history.samples] == expected
    assert [each.found for each in history.samples] == [{}, {"host": 160}, {"host": 10}]
    assert [each.lost for each in history.samples] == [{"evicted": each} for each, _ in expected]
    assert history.samples[0].tiers == {"host": (5, 7)}
    for _ in range(SECONDS + 5):
        history.sample()
    assert len(history.samples) == SECONDS


def test_several_tenants_are_told_apart_up_to_a_bound() -> None:
    engine = FakeEngine()
    history = History(engine)
    numbers = {TENANT_PROMPT_TOKENS.key("a", COMPUTED): 5.0, TENANT_KV_BYTES.key("a"): 9.0}
    engine.stats = EngineStats(numbers=dict(numbers))
    assert history.sample().tenants == {"a": (0, 5)}
    assert history.tenants == [TenantNow(name="a", kv_bytes=9)]
    numbers[TENANT_PROMPT_TOKENS.key("b", "host")] = 7.0
    numbers[TENANT_PROMPT_TOKENS.key("a", COMPUTED)] = 8.0
    numbers[TENANT_REQUESTS.key("b", "waiting")] = 2.0
    engine.stats = EngineStats(numbers=dict(numbers))
    assert history.sample().tenants == {"a": (0, 3), "b": (7, 0)}
    assert history.tenants == [TenantNow(name="b", waiting=2), TenantNow(name="a", kv_bytes=9)]
    for n in range(2 * MAX_TENANTS):
        numbers[TENANT_PROMPT_TOKENS.key(f"t{n}", COMPUTED)] = 1.0
    engine.stats = EngineStats(numbers=dict(numbers))
    assert len(history.sample().tenants) < MAX_TENANTS == len(history.tenants)


async def test_a_refused_body_is_not_followed(server: Server) -> None:
    assert (await server.post(CHAT, {"model": MODEL}))[0] == 400
    async with server.session.get(server.url + "/ui/events") as response:
        assert (await anext(told(response)))["requests"] == []

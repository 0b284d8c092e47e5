"""The OpenAPI document names every route; the page needs nothing from elsewhere; requests that a
tool makes up from the document never fail the server.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, given, settings

from radixserve.api.app import ApiSettings, make_app
from radixserve.api.context import Api
from radixserve.api.openapi import OPERATIONS, document, nullable
from radixserve.metrics import Metrics
from tests.api.conftest import MODEL, Server
from tests.fakes import FakeEngine, LocalTokenizer, byte_tokenizer


def _api(tokenizer: LocalTokenizer) -> Api:
    return Api.of(FakeEngine(), tokenizer, Metrics(), ApiSettings(), (MODEL,))


def test_every_route_is_in_the_document(tokenizer: LocalTokenizer) -> None:
    routes = {
        (route.method.lower(), re.sub(r":[^}]*", "", route.resource.canonical))
        for route in make_app(_api(tokenizer)).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert routes == {(each.method, each.path) for each in OPERATIONS}


@pytest.mark.parametrize(
    ("schema", "changed"),
    [
        (
            {"anyOf": [{"type": "string"}, {"type": "null"}]},
            {"anyOf": [{"type": "string"}], "nullable": True},
        ),
        ({"type": "null"}, {"type": "string", "enum": [None], "nullable": True}),
        ({"items": {"anyOf": [{"type": "integer"}]}}, {"items": {"anyOf": [{"type": "integer"}]}}),
    ],
)
def test_null_is_written_as_version_3_0_has_it(schema: object, changed: object) -> None:
    assert nullable(schema) == changed


async def test_the_page_loads_nothing_from_elsewhere(server: Server) -> None:
    async with server.session.get(server.url + "/docs") as response:
        page = await response.text()
        assert response.content_type == "text/html"
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(links) == 3
    for link in links:
        async with server.session.get(f"{server.url}/{link}") as response:
            assert response.status == 200
            assert len(await response.read()) > 500
    async with server.session.get(server.url + "/docs/../app.py") as response:
        assert response.status == 404
    status, _ = await server.get("/docs/index.html")
    assert status == 404


async def test_the_document_is_served(server: Server) -> None:
    status, served = await server.get("/openapi.json")
    assert status == 200
    assert served["paths"].keys() == document()["paths"].keys()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The application on a loop of its own, since the tool's client blocks."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    found: list[int] = []

    async def serve() -> web.AppRunner:
        runner = web.AppRunner(make_app(_api(byte_tokenizer())), handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        found.append(runner.addresses[0][1])
        started.set()
        return runner

    def run() -> None:
        runner = loop.run_until_complete(serve())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(30)
    yield f"http://127.0.0.1:{found[0]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


_SCHEMA = schemathesis.openapi.from_dict(document())
_ENDLESS = "/ui/events"  # an answer that has no end: the tool would wait for it
_NAMES = [f"{each.method.upper()} {each.path}" for each in OPERATIONS if each.path != _ENDLESS]


@pytest.mark.parametrize("name", _NAMES)
def test_made_up_requests_never_fail_the_server(name: str, address: str) -> None:
    method, path = name.split(" ")
    operation = _SCHEMA[path][method]

    @given(case=operation.as_strategy())
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case: Any) -> None:
        response = case.call(base_url=address, timeout=20)
        assert response.status_code < 500, response.text

    check()

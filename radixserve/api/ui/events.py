"""GET /ui/events: server-sent events that keep the page up to date, one a second.

The first event carries the history and the requests that ended lately, later ones what is new. An
event costs well below a millisecond, so that a page takes less than 1 % of a core. Needs an
admin's key.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from aiohttp import web

import radixserve
from radixserve.api.access import check_admin
from radixserve.api.context import Api, api_of
from radixserve.api.models import MODELS
from radixserve.api.sse import EventStream, event
from radixserve.api.ui.history import Sample
from radixserve.api.ui.live import ShownRequest
from radixserve.api.ui.tenants import TenantNow
from radixserve.errors import Unavailable
from radixserve.step import EngineInfo

MAX_PAGES: Final = 32  # open at the same time
_ENDED: Final = ("draining", "stopped")


class News(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a page does not know yet. `server` comes in the first event and after each start of an
    engine.
    """

    state: str  # "ready", or why the engine is not
    samples: list[Sample]
    requests: list[ShownRequest]
    tenants: list[TenantNow] = []
    server: Server | None = None


class Server(msgspec.Struct, kw_only=True):
    """Facts that stay the same as long as the engine lives."""

    version: str
    model: str
    others: list[str]  # models of the same server
    engine: EngineInfo | None


async def events(request: web.Request) -> web.StreamResponse:
    """GET /ui/events. Ends when the server drains."""
    check_admin(request)
    api = api_of(request)
    if api.engine.unready_reason in _ENDED:
        raise Unavailable("The server ends.", code="server_not_ready")
    if api.ui.num_open >= MAX_PAGES:
        raise Unavailable(f"{MAX_PAGES} pages are open already.")
    stream = EventStream(request, api.settings.client_write_seconds)
    api.ui.num_open += 1
    try:
        await _tell(api, _others(request, api), stream)
    finally:
        api.ui.num_open -= 1
    return stream.response


def _others(request: web.Request, api: Api) -> list[str]:
    names = [each.model_name for each in request.app[MODELS]]
    return [name for name in names if name != api.model_name]


async def _tell(api: Api, others: list[str], stream: EventStream) -> None:
    mark, told_at, known = 0, 0.0, None
    while api.engine.unready_reason not in _ENDED:
        samples = [sample for sample in api.ui.history.samples if sample.at > told_at]
        info = api.engine.info
        news = News(
            state=api.unready_reason or "ready",
            samples=samples,
            requests=api.ui.live.since(mark),
            tenants=api.ui.history.tenants,
            server=None if info is known and told_at else _server(api, others),
        )
        mark, known = api.ui.live.num_ended, info
        told_at = samples[-1].at if samples else told_at or 1.0
        await stream.send(event(news))
        await asyncio.sleep(1.0)
    await stream.end(b"")


def _server(api: Api, others: list[str]) -> Server:
    return Server(
        version=radixserve.__version__,
        model=api.model_name,
        others=others,
        engine=api.engine.info,
    )

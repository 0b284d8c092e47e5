"""The handler of every endpoint that generates: read, validate, tokenise, generate, render.

Every body takes this path, in every dialect, streamed or not, so that no check exists for one of
them only. An `Endpoint` describes what differs. Knows no dialect.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol

from aiohttp import web
from aiohttp.typedefs import Handler

from radixserve.api.access import assign_tenant, tenant_of
from radixserve.api.account import Account
from radixserve.api.body import Body, read_body
from radixserve.api.context import Api, api_of
from radixserve.api.envelope import as_api_error, note_error, title
from radixserve.api.refusals import shown
from radixserve.api.sse import EventStream
from radixserve.errors import ApiError, BadRequest
from radixserve.front.generation import Generation
from radixserve.front.stream import Delta, Stream

TIMEOUT_HEADER: Final = "x-request-timeout"


class Renderer(Protocol):
    """Renders one answer in a dialect: as stream events (`radixserve.api.sse.event`), or as one
    body.
    """

    def opening(self) -> bytes:
        """The events before the first delta."""

    def delta(self, stream: Stream, delta: Delta) -> bytes:
        """The events of an addition to the answer of `stream`."""

    def closing(self) -> bytes:
        """The events after the last delta; every stream has a finish reason."""

    def failure(self, error: ApiError) -> bytes:
        """The event that ends a stream which fails after its first event."""

    def whole(self, answers: list[Delta]) -> bytes:
        """The JSON body of a complete answer; `answers` has one `Delta` per stream."""


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[Body]):
    """What differs between endpoints. `prepare` makes all checks, cheap ones first, and raises the
    refusal.
    """

    name: str
    body_type: type[Body]
    prepare: Callable[[Api, Body], Awaitable[Generation]]
    renderer: Callable[[Api, Generation, Body], Renderer]


def handler_of(endpoint: Endpoint[Any]) -> Handler:
    """The handler that serves `endpoint`."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await _serve(request, endpoint)

    return handle


async def _serve(request: web.Request, endpoint: Endpoint[Any]) -> web.StreamResponse:
    api, arrived = api_of(request), time.monotonic()
    with Account(request, endpoint.name, arrived) as account:
        deadline = deadline_of(request, arrived)
        body = await read_body(request, endpoint.body_type)
        generation = await endpoint.prepare(api, body)
        assign_tenant(generation, tenant_of(request), api.namespaces)
        generation.arrived, generation.deadline = arrived, deadline
        account.open(generation)
        renderer = endpoint.renderer(api, generation, body)
        answer = _answer_streamed if generation.streamed else _answer_whole
        return await answer(request, generation, renderer)


def deadline_of(request: web.Request, arrived: float) -> float | None:
    """When the header `x-request-timeout` ends the request, in time.monotonic() seconds; None
    without it. Raises BadRequest unless it is a positive number of seconds.
    """
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        text = f"'{TIMEOUT_HEADER}' must be a positive number of seconds, not {shown(given)!r}."
        raise BadRequest(text, param=TIMEOUT_HEADER, code="invalid_value")
    return arrived + seconds


async def _answer_whole(
    request: web.Request, generation: Generation, renderer: Renderer
) -> web.StreamResponse:
    answers = await generation.collect(api_of(request).engine)
    return web.Response(body=renderer.whole(answers), content_type="application/json")


async def _answer_streamed(
    request: web.Request, generation: Generation, renderer: Renderer
) -> web.StreamResponse:
    """Send the answer as a stream. A failure after the first event or comment is sent as an event,
    because the status has been sent.
    """
    api = api_of(request)
    events = EventStream(request, api.settings.client_write_seconds)
    opening = renderer.opening()

    async def sink(stream: Stream, delta: Delta) -> None:
        nonlocal opening
        data, opening = opening + renderer.delta(stream, delta), b""
        if data:
            await events.send(data)

    try:
        async with events.kept_alive(api.settings.stream_comment_seconds):
            await generation.run(api.engine, sink)
        await events.end(renderer.closing())
    except Exception as error:
        if not events.started or isinstance(error, ConnectionError):
            raise  # becomes an HTTP error, unless the client is gone
        generation.fail(error)
        failure = as_api_error(error, request)
        note_error(failure, title(request), api.metrics)
        await events.fail(opening + renderer.failure(failure))
    return events.response

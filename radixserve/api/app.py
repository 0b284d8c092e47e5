"""The aiohttp application: routes, request ids, access control and the one error middleware.

`make_app` receives everything it needs; the application starts only threads for detokenising.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import HttpVersion11, web
from aiohttp.typedefs import Handler

from radixserve.api import adapters, openapi, ops
from radixserve.api.access import (
    check_admin,
    check_content_type,
    check_host,
    identify_tenant,
    tenant_of,
)
from radixserve.api.anthropic.endpoints import MESSAGES, count_tokens
from radixserve.api.cache import endpoints as cache
from radixserve.api.cache.explain import explain
from radixserve.api.cache.pins import pin, pins, unpin
from radixserve.api.cache.warm import warm
from radixserve.api.config import change, config
from radixserve.api.context import API, Api, api_of
from radixserve.api.cors import add_cors_headers, answer_options
from radixserve.api.envelope import (
    as_api_error,
    error_response,
    is_anthropic,
    note_error,
    title,
)
from radixserve.api.handlers import handler_of
from radixserve.api.models import MODELS, Models
from radixserve.api.openai.endpoints import CHAT, COMPLETIONS
from radixserve.api.openai.responses.endpoint import RESPONSES, count_input_tokens, not_stored
from radixserve.api.request_id import identify, request_id_of
from radixserve.api.settings import ApiSettings
from radixserve.api.ui import events as ui_events
from radixserve.api.ui import page as ui_page
from radixserve.errors import Unavailable

__all__ = ["ApiSettings", "make_app"]


def make_app(api: Api, *others: Api) -> web.Application:
    """Make the application for one model, or for it and `others`, which were made by `Api.beside`.
    It must run with `handler_cancellation=True`, so that a client that disconnects stops its work.
    """
    app = web.Application(
        middlewares=[_errors_as_envelope, _only_those_who_may, _with_its_model],
        client_max_size=api.settings.max_body_bytes,
    )
    app[API], app[MODELS] = api, Models(api, *others)
    app.on_response_prepare.append(_add_headers)
    app.cleanup_ctx.append(_close_threads)
    app.cleanup_ctx.append(_keep_history)
    for prefix in {"", api.settings.root_path}:
        app.add_routes(_routes(prefix))
    return app


def _routes(prefix: str) -> list[web.RouteDef]:
    return [
        web.get(f"{prefix}/", ops.about),
        web.get(f"{prefix}/ui", ui_page.page),
        web.get(f"{prefix}/ui/events", ui_events.events, allow_head=False),
        web.get(f"{prefix}/ui/{{asset:[^/]+[.][^/]+}}", ui_page.asset),
        web.get(f"{prefix}/openapi.json", openapi.openapi),
        web.get(f"{prefix}/docs", openapi.docs),
        web.get(f"{prefix}/docs/{{asset}}", openapi.docs_asset),
        web.post(f"{prefix}/v1/chat/completions", handler_of(CHAT)),
        web.post(f"{prefix}/v1/completions", handler_of(COMPLETIONS)),
        web.post(f"{prefix}/v1/responses", handler_of(RESPONSES)),
        web.post(f"{prefix}/v1/responses/input_tokens", count_input_tokens),
        web.get(f"{prefix}/v1/responses/{{id}}", not_stored),
        web.delete(f"{prefix}/v1/responses/{{id}}", not_stored),
        web.post(f"{prefix}/v1/responses/{{id}}/cancel", not_stored),
        web.get(f"{prefix}/v1/responses/{{id}}/input_items", not_stored),
        web.post(f"{prefix}/v1/messages", handler_of(MESSAGES)),
        web.post(f"{prefix}/v1/messages/count_tokens", count_tokens),
        web.get(f"{prefix}/v1/models", ops.list_models),
        web.get(f"{prefix}/v1/models/{{model:.+}}", ops.get_model),
        web.post(f"{prefix}/v1/load_lora_adapter", adapters.load),
        web.post(f"{prefix}/v1/unload_lora_adapter", adapters.unload),
        web.get(f"{prefix}/health", ops.ready),
        web.get(f"{prefix}/health/ready", ops.ready),
        web.get(f"{prefix}/health/live", ops.live),
        web.get(f"{prefix}/metrics", ops.metrics),
        web.get(f"{prefix}/version", ops.version),
        web.post(f"{prefix}/tokenize", ops.tokenize),
        web.post(f"{prefix}/detokenize", ops.detokenize),
        web.get(f"{prefix}/cache", cache.summary),
        web.delete(f"{prefix}/cache", cache.drop),
        web.get(f"{prefix}/cache/tree", cache.tree),
        web.post(f"{prefix}/cache/explain", explain),
        web.post(f"{prefix}/cache/warm", warm),
        web.post(f"{prefix}/cache/pin", pin),
        web.get(f"{prefix}/cache/pins", pins),
        web.delete(f"{prefix}/cache/pin/{{id}}", unpin),
        web.get(f"{prefix}/config", config),
        web.put(f"{prefix}/config", change),
        web.post(f"{prefix}/flush_cache", cache.flush),
        web.post(f"{prefix}/reset_prefix_cache", cache.flush),
    ]


# These say nothing about the model or its users, and a browser has no key.
_FOR_ALL = (
    openapi.openapi,
    openapi.docs,
    openapi.docs_asset,
    ui_page.page,
    ui_page.asset,
)
_HEALTH = (ops.ready, ops.live)
# These are for one model, like all requests that compute or change something.
_READ_FROM_ONE = (cache.summary, cache.tree, pins, config, ui_events.events)


@web.middleware
async def _errors_as_envelope(request: web.Request, handler: Handler) -> web.StreamResponse:
    identify(request)
    api = request.app[API]
    try:
        return await handler(request)
    except ConnectionError as gone:
        # the client is gone; end as if the handler had been cancelled
        raise asyncio.CancelledError from gone
    except Exception as error:
        refusal = as_api_error(error, request)
        note_error(refusal, title(request), api_of(request).metrics)
        return error_response(refusal, request.path, api.settings.retry_after_seconds)


@web.middleware
async def _only_those_who_may(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer open paths to every client, and all others, unknown ones included, to permitted
    ones.
    """
    api = request.app[API]
    is_open = _is_open(request, api.settings)
    if is_open and request.match_info.handler in _HEALTH:
        return await handler(request)
    if getattr(request.protocol, "is_extra", False):
        raise Unavailable("The server has as many connections as it takes.")
    check_host(request, api.settings.allowed_hosts)
    if request.method == "OPTIONS":  # a browser's preflight request has no key
        return answer_options(request, api.settings.allow_origin)
    if not is_open:
        identify_tenant(request, api.keys)
        if api.keys.required and request.match_info.handler in (*_HEALTH, ops.metrics):
            check_admin(request)
    check_content_type(request)
    if is_open or request.method != "POST":
        return await handler(request)
    with api.limits.entered(tenant_of(request)):
        return await handler(request)


@web.middleware
async def _with_its_model(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let handlers see the model that the request is for."""
    if _is_for_one_model(request):
        await request.app[MODELS].choose(request)
    return await handler(request)


def _is_for_one_model(request: web.Request) -> bool:
    route = request.match_info
    if route.http_exception is not None or route.handler is not_stored:
        return False
    return request.method not in ("GET", "HEAD") or route.handler in _READ_FROM_ONE


def _is_open(request: web.Request, settings: ApiSettings) -> bool:
    """Whether the path is answered without a key."""
    handler = request.match_info.handler
    if handler in _HEALTH:
        return settings.health_access == "open"
    if handler is ops.metrics:
        return settings.metrics_access == "open"
    return handler in _FOR_ALL


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "radixserve"
    response.headers["x-request-id"] = identity = request_id_of(request)
    if is_anthropic(request.path):
        response.headers["request-id"] = identity  # where Anthropic's clients look for it
    if getattr(request.protocol, "is_extra", False):
        response.force_close()
    add_cors_headers(request, response.headers, request.app[API].settings.allow_origin)
    if request.version < HttpVersion11 and response.content_length is None:
        response.force_close()  # HTTP/1.0: the end of the connection marks the end of the body


async def _close_threads(app: web.Application) -> AsyncIterator[None]:
    yield
    app[API].threads.close()


async def _keep_history(app: web.Application) -> AsyncIterator[None]:
    sampling = [asyncio.create_task(api.ui.history.run()) for api in app[MODELS]]
    yield
    for each in sampling:
        each.cancel()
    await asyncio.wait(sampling)

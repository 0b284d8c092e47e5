"""The aiohttp application: routes, the one error middleware, request ids.

Everything it needs is given to `make_app`; it starts nothing but threads for detokenising.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, web
from aiohttp.typedefs import Handler

from radixserve.api import handlers, ops
from radixserve.api.context import API, Api, TokenizerThreads
from radixserve.api.envelope import as_api_error, error_response, note_error, title
from radixserve.api.request_id import identify, request_id_of
from radixserve.api.settings import ApiSettings
from radixserve.engine.protocol import EngineClient

if TYPE_CHECKING:
    from radixserve.metrics import Metrics
    from radixserve.text.client import TokenizerClient

__all__ = ["ApiSettings", "make_app"]


def make_app(
    engine: EngineClient,
    tokenizer: TokenizerClient,
    metrics: Metrics,
    settings: ApiSettings,
    model_names: tuple[str, ...],
) -> web.Application:
    """The application to be run with `handler_cancellation=True`, so that a client that leaves
    stops its work.
    """
    app = web.Application(
        middlewares=[_errors_as_envelope], client_max_size=settings.max_body_bytes
    )
    threads = TokenizerThreads(settings)
    app[API] = Api(engine, tokenizer, metrics, settings, model_names, int(time.time()), threads)
    app.on_response_prepare.append(_add_headers)
    app.cleanup_ctx.append(_close_threads)
    app.add_routes(_routes())
    return app


def _routes() -> list[web.RouteDef]:
    return [
        web.post("/v1/chat/completions", handlers.chat_completions),
        web.post("/v1/completions", handlers.completions),
        web.get("/v1/models", ops.list_models),
        web.get("/v1/models/{model:.+}", ops.get_model),
        web.get("/health", ops.ready),
        web.get("/health/ready", ops.ready),
        web.get("/health/live", ops.live),
        web.get("/metrics", ops.metrics),
        web.get("/version", ops.version),
        web.post("/tokenize", ops.tokenize),
        web.post("/detokenize", ops.detokenize),
    ]


@web.middleware
async def _errors_as_envelope(request: web.Request, handler: Handler) -> web.StreamResponse:
    identify(request)
    api = request.app[API]
    try:
        return await handler(request)
    except ConnectionError as gone:
        # there is nobody to tell; as if the handler had been cancelled for it
        raise asyncio.CancelledError from gone
    except Exception as error:
        refusal = as_api_error(error, request)
        note_error(refusal, title(request), api.metrics)
        return error_response(refusal, api.settings.retry_after_seconds)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "radixserve"
    response.headers["x-request-id"] = request_id_of(request)
    if request.version < HttpVersion11 and response.content_length is None:
        response.force_close()  # only the end of the connection can tell the end of the body


async def _close_threads(app: web.Application) -> AsyncIterator[None]:
    yield
    app[API].threads.close()

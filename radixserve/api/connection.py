"""One connection of a client: how long it has been idle, how long headers may take, and the answer
to data that is not valid HTTP.

aiohttp's protocol does the parsing, writing and pipelining. Knows no socket and no other
connection; `api.listen` decides which connections are closed if there are too many.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from radixserve.api.context import API
from radixserve.api.envelope import as_api_error, error_response, note_error
from radixserve.api.request_id import new_request_id
from radixserve.errors import ApiError, BadRequest
from radixserve.logs import REQUEST_ID

if TYPE_CHECKING:
    from radixserve.api.listen import Listener

_log = logging.getLogger("radixserve.api")


class Connection(web.RequestHandler):
    """A connection that `listener` accepted. `is_extra`: it exceeds the limit, and only health is
    answered on it.
    """

    __slots__ = ("_app", "_headers_since", "_listener", "idle_since", "is_extra")

    def __init__(
        self, server: web.Server, app: web.Application, listener: Listener, *, is_extra: bool
    ) -> None:
        settings = app[API].settings
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # our own lines say more
            keepalive_timeout=settings.keep_alive_seconds,
            lingering_time=settings.lingering_seconds,
        )
        self._app = app
        self._listener = listener
        self._headers_since: float | None = None
        self.idle_since = self._loop.time()
        self.is_extra = is_extra

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered or has arrived completely."""
        return self._waiter is not None and not self._waiter.done()

    def is_late(self, now: float, seconds: float) -> bool:
        """Whether headers that have begun, or the first ones, are incomplete after `seconds`."""
        since = self._headers_since
        return self.is_idle and since is not None and now - since > seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._headers_since = self._loop.time()
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._listener.lost(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.is_idle:
            self._headers_since = None
        elif data and self._headers_since is None:
            self._headers_since = self._loop.time()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Failures outside of handlers; but for a body that cannot be read, which the client was
        told of if a handler wanted it.
        """
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; for a header Expect, which aiohttp refuses by itself, the envelope."""
        if isinstance(resp, web.HTTPExpectationFailed):
            resp = self.handle_error(request, exc=resp)
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self.idle_since = self._loop.time()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The error envelope for data that the parser refuses, and for failures outside of
        handlers.
        """
        if request.writer.output_size > 0:  # part of an answer was sent already
            raise ConnectionError("the answer had begun")
        identity = new_request_id({})
        REQUEST_ID.set(identity)
        failure = exc if isinstance(exc, Exception) else Exception(message or "no reason known")
        error = _unparsed(failure) or as_api_error(failure, request)
        api = self._app[API]
        note_error(error, "a request that was not handled", api.metrics)
        response = error_response(error, request.path, api.settings.retry_after_seconds)
        response.headers["Server"] = "radixserve"
        response.headers["x-request-id"] = identity
        response.force_close()
        return response


def _unparsed(error: Exception) -> ApiError | None:
    """The refusal of data that is not an HTTP request; None for other failures."""
    if isinstance(error, LineTooLong):
        refusal = BadRequest("The request line or a header is too long.", code="header_too_large")
        refusal.status = 431
        return refusal
    if isinstance(error, HttpProcessingError):
        return BadRequest("This is not a valid HTTP request.", code="malformed_request")
    return None

"""Turns every failure into the error envelope of the path's dialect, with status and headers, and
without internal details.

Knows aiohttp's own exceptions, so that a 404, 405 or 413 of the framework has the same form.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from radixserve.api.anthropic import errors as anthropic
from radixserve.api.openai import errors as openai
from radixserve.api.refusals import shown
from radixserve.errors import (
    ApiError,
    BadRequest,
    BodyTooLarge,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    ServerError,
    Unauthorized,
    Unavailable,
)

if TYPE_CHECKING:
    from radixserve.metrics import Metrics

log = logging.getLogger("radixserve.api")

_EXHAUSTED = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS)
# Such a body may not have been read completely, so the connection cannot be used again.
_BODY_LEFT_UNREAD = ("invalid_body", "request_timeout", "request_too_large")


def is_anthropic(path: str) -> bool:
    """Whether clients expect the Anthropic dialect at `path`, which may not exist."""
    return "/v1/messages/" in f"{path}/"


def error_response(error: ApiError, path: str, retry_after: int) -> web.Response:
    """The response for `error` at `path`. A 503 without a figure of its own carries `retry_after`
    seconds.
    """
    headers = {}
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allow)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RateLimited):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(
            error.retry_after if error.retry_after is not None else retry_after
        )
    body = (anthropic if is_anthropic(path) else openai).encode_error(error)
    response = web.Response(
        status=error.status, body=body, content_type="application/json", headers=headers
    )
    if error.code in _BODY_LEFT_UNREAD:
        response.force_close()
    return response


def note_error(error: ApiError, what: str, metrics: Metrics) -> None:
    """Count `error` and log its line; call it once for each error that is sent to a client.

    `what` is the request. The line does not contain the message, which may repeat the client's
    text.
    """
    metrics.error_told(error.code)
    field = None if error.param is None else shown(error.param)
    log.info("%s: status=%d code=%s field=%r", what, error.status, error.code, field)


def title(request: web.BaseRequest) -> str:
    """Method and path, cut for a log line or a message."""
    return f"{request.method} {shown(request.rel_url.raw_path)}"


def as_api_error(error: Exception, request: web.BaseRequest) -> ApiError:
    """The refusal to send for `error`. An unexpected exception is logged and becomes a 500 without
    details.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, web.HTTPException):
        return _from_aiohttp(error, request)
    if isinstance(error, (HttpProcessingError, web.RequestPayloadError)):
        return BadRequest(
            "The body could not be read: its encoding or framing is broken.", code="invalid_body"
        )
    if is_exhaustion(error):
        log.warning("out of memory, threads or open files in %s: %s", title(request), error)
        return Unavailable("The server has no memory, threads or files left for this request now.")
    log.exception("unexpected failure in %s", title(request), exc_info=error)
    return ServerError("The server failed on this request.", code="internal_error")


def is_exhaustion(error: BaseException) -> bool:
    """Whether the system refused memory, a thread, a process or a file, so that a retry may
    succeed.
    """
    if isinstance(error, OSError):
        return error.errno in _EXHAUSTED
    no_thread = isinstance(error, RuntimeError) and "start new thread" in str(error)
    return isinstance(error, MemoryError) or no_thread


def _from_aiohttp(error: web.HTTPException, request: web.BaseRequest) -> ApiError:
    what = title(request)
    if isinstance(error, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(
            f"{what}: method not allowed.", allow=tuple(sorted(error.allowed_methods))
        )
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return BodyTooLarge("The body is larger than this server takes.")
    if error.status == 404:
        return NotFound(f"{what}: no such path.", code="not_found")
    if 400 <= error.status < 500:
        refusal = BadRequest(error.reason)
        refusal.status = error.status
        return refusal
    return ServerError("The server failed on this request.", code="internal_error")

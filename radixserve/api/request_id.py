"""The id of an HTTP request, which its answer's `x-request-id` and all of its log lines carry."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Final

from aiohttp import web

from radixserve.logs import REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import Mapping

_SANE: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_KEY: Final = web.RequestKey("request_id", str)


def new_request_id(headers: Mapping[str, str]) -> str:
    """The client's own id if it is safe in a header and in a log line, otherwise a new one."""
    given = headers.get("x-request-id", "")
    return given if _SANE.fullmatch(given) else f"req-{secrets.token_hex(12)}"


def identify(request: web.Request) -> None:
    """Give `request` its id, which all later log lines of the task that handles it carry."""
    request[_KEY] = new_request_id(request.headers)
    REQUEST_ID.set(request[_KEY])


def request_id_of(request: web.Request) -> str:
    """The id given by `identify`, or a new one if that was not called."""
    return request[_KEY] if _KEY in request else new_request_id(request.headers)

"""The CORS headers, which let web pages of other origins use this server.

Off unless origins are allowed by the setting `allow_origin`; without the headers a browser does not
send such a page's request, or does not show it the answer.
"""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import web
from multidict import CIMultiDict

_MAX_AGE_SECONDS = 600  # how long a browser may cache the answer
_EXPOSED = "x-request-id, request-id, retry-after"


def add_cors_headers(
    request: web.BaseRequest, headers: CIMultiDict[str], allowed: tuple[str, ...]
) -> None:
    """Tell the browser that the page's origin may read this answer, if it is one of `allowed`."""
    if not allowed:
        return
    if "*" not in allowed:
        headers["Vary"] = "Origin"
    origin = request.headers.get("Origin")
    if origin is None or not _is_allowed(origin, allowed):
        return
    headers["Access-Control-Allow-Origin"] = "*" if "*" in allowed else origin
    headers["Access-Control-Expose-Headers"] = _EXPOSED


def answer_options(request: web.Request, allowed: tuple[str, ...]) -> web.Response:
    """The answer to OPTIONS: the methods of the path, and for a preflight request what the page may
    send.

    Raises the router's error if the path does not exist.
    """
    allow = ", ".join(sorted({*_methods(request), "OPTIONS"}))
    response = web.Response(status=204, headers={"Allow": allow})
    origin = request.headers.get("Origin")
    if origin is not None and _is_allowed(origin, allowed):
        response.headers["Access-Control-Allow-Methods"] = allow
        wanted = request.headers.get("Access-Control-Request-Headers")
        if wanted is not None:
            response.headers["Access-Control-Allow-Headers"] = wanted
        if "Access-Control-Request-Private-Network" in request.headers:
            response.headers["Access-Control-Allow-Private-Network"] = "true"
        response.headers["Access-Control-Max-Age"] = str(_MAX_AGE_SECONDS)
    return response


def _methods(request: web.Request) -> Collection[str]:
    """The methods of the path; for `*`, which stands for the server as a whole, those of any."""
    if request.raw_path == "*":
        return ("GET", "HEAD", "POST")
    found = request.match_info.http_exception
    if not isinstance(found, web.HTTPMethodNotAllowed):  # no endpoint takes OPTIONS itself
        raise found or web.HTTPNotFound
    return found.allowed_methods


def _is_allowed(origin: str, allowed: tuple[str, ...]) -> bool:
    known = {each.lower().rstrip("/") for each in allowed}
    return "*" in known or origin.lower() in known

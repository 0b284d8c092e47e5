"""The files of the page at /ui. They come with the package and load nothing from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from aiohttp import web

from radixserve.api.models import MODELS
from radixserve.errors import NotFound

_TYPES: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_FILES: Final = files("radixserve") / "ui"
_ASSETS: Final = {
    each.name: each
    for folder in (_FILES, _FILES / "vendor")
    for each in folder.iterdir()
    if each.name.rpartition(".")[2] in _TYPES
}
_HEADERS: Final = {
    # Text of users' prompts is shown on this page: nothing in it may become a script.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


async def page(request: web.Request) -> web.Response:
    """GET /ui: the page. It holds no data; those that it asks for need an admin's key. Where there
    are several models it is that of the first one, which links to the others.
    """
    first, *others = request.app[MODELS]
    if others and "model" not in request.query:
        target = request.rel_url.with_query(model=first.model_name)
        return web.Response(status=302, headers={"Location": str(target)})
    return _file((_FILES / "index.html").read_bytes(), "text/html")


async def asset(request: web.Request) -> web.Response:
    """GET /ui/{asset}: a script or style of the page."""
    name = request.match_info["asset"]
    if name not in _ASSETS:
        raise NotFound("There is no such file.", code="not_found")
    return _file(_ASSETS[name].read_bytes(), _TYPES[name.rpartition(".")[2]])


def _file(body: bytes, content_type: str) -> web.Response:
    return web.Response(body=body, content_type=content_type, charset="utf-8", headers=_HEADERS)

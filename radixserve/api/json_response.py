"""A response whose body is one JSON value."""

from __future__ import annotations

import msgspec
from aiohttp import web


def json_response(body: object) -> web.Response:
    """200 with `body` encoded; it may hold structs, of which a tag is part."""
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")

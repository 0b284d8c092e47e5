"""Reads a request's body, with limits of size and time, and decodes it. Knows every body type but
no endpoint.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from radixserve.api.context import API
from radixserve.api.wire import Body, decode_body
from radixserve.errors import BadRequest


async def read_body(request: web.Request, body_type: type[Body]) -> Body:
    """Read and decode the body; the declared content type is ignored.

    Raises aiohttp's 413 beyond the size limit (which counts decompressed bytes), and BadRequest
    otherwise, with status 408 if the body does not arrive in time.
    """
    try:
        async with asyncio.timeout(request.app[API].settings.body_read_seconds):
            raw = await request.read()
    except TimeoutError:
        refusal = BadRequest("The body did not arrive in time.", code="request_timeout")
        refusal.status = 408
        raise refusal from None
    return decode_body(raw, body_type)

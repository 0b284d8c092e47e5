"""Reading a request's body under limits of size and time, and decoding it. Knows every body type,
no endpoint.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from radixserve.api.context import API
from radixserve.api.wire import Body, decode_body
from radixserve.errors import BadRequest


async def read_body(request: web.Request, body_type: type[Body]) -> Body:
    """The decoded body, whatever content type it claims.

    Raises aiohttp's 413 beyond the size limit (which counts inflated bytes), BadRequest otherwise;
    status 408 when the body does not arrive in time.
    """
    try:
        async with asyncio.timeout(request.app[API].settings.body_read_seconds):
            raw = await request.read()
    except TimeoutError:
        refusal = BadRequest("The body did not arrive in time.", code="request_timeout")
        refusal.status = 408
        raise refusal from None
    return decode_body(raw, body_type)

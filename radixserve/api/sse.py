"""Server-sent events: one struct encoded to one `data:` event, several events per write where they
come together.

Owns the moment the response starts (at the first event, so that a failure before it keeps its HTTP
status) and the clients that stop reading. Knows no endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable

import msgspec
from aiohttp import web

from radixserve.api.envelope import encode_error
from radixserve.errors import ApiError

_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


class EventStream:
    """A streamed answer. Raises ConnectionError from any write once the client is gone or reads
    nothing for long.
    """

    def __init__(self, request: web.Request, write_seconds: float) -> None:
        self._request = request
        self._write_seconds = write_seconds
        self._encode = msgspec.json.Encoder().encode
        self.response = web.StreamResponse(headers=_HEADERS)

    @property
    def started(self) -> bool:
        return self.response.prepared

    async def send(self, *events: msgspec.Struct) -> None:
        """Write `events` at once."""
        encode = self._encode
        await self._write(b"".join([b"data: %b\n\n" % encode(event) for event in events]))

    async def done(self) -> None:
        """End a complete stream."""
        await self._write(b"data: [DONE]\n\n")
        await self._in_time(self.response.write_eof())

    async def fail(self, error: ApiError) -> None:
        """End a stream that failed: an error event and no `[DONE]`.

        The connection stays usable: the client was not told otherwise, and may have its next
        request on the way.
        """
        with contextlib.suppress(ConnectionError):
            await self._write(b"data: %b\n\n" % encode_error(error))
            await self._in_time(self.response.write_eof())

    async def _write(self, data: bytes) -> None:
        if not self.response.prepared:
            await self.response.prepare(self._request)
        await self._in_time(self.response.write(data))

    async def _in_time(self, writing: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._write_seconds):
                await writing
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the client stopped reading") from None

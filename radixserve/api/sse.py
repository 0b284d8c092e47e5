"""Server-sent events: encodes one struct to one event, and sends events that arrive together in one
write.

Decides when the response starts: at the first event, so that a failure before it keeps its HTTP
status, or after some seconds without one, so that clients and proxies do not give up. Also handles
clients that stop reading. Knows no endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable

import msgspec
from aiohttp import web

_COMMENT = b": the answer is being computed\n\n"  # clients skip lines that begin with a colon
_SMALL_BUFFER = 16 * 1024  # bytes; below it asyncio's transports never pause their writers
_encode = msgspec.json.Encoder().encode
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


def event(data: msgspec.Struct, name: str | None = None) -> bytes:
    """The bytes of one event."""
    if name is None:
        return b"data: %b\n\n" % _encode(data)
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(data))


class EventStream:
    """A streamed answer. Every write raises ConnectionError once the client is gone or has not read
    for long.
    """

    def __init__(self, request: web.Request, write_seconds: float) -> None:
        self._request = request
        self._write_seconds = write_seconds
        self._written_at = asyncio.get_running_loop().time()
        self.response = web.StreamResponse(headers=_HEADERS)

    @property
    def started(self) -> bool:
        return self.response.prepared

    @contextlib.asynccontextmanager
    async def kept_alive(self, seconds: float) -> AsyncIterator[None]:
        """Within the block the client gets a comment line whenever `seconds` pass without an event;
        if 0, never.
        """
        commenting = asyncio.create_task(self._comment(seconds)) if seconds else None
        try:
            yield
        finally:
            if commenting is not None:
                commenting.cancel()
                await asyncio.wait([commenting])

    async def _comment(self, seconds: float) -> None:
        """Send comments. If the client is gone or does not read, the handler is cancelled."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while True:
                silent = loop.time() - self._written_at
                if silent < seconds:
                    await asyncio.sleep(seconds - silent)
                else:
                    await self._write(_COMMENT)

    async def send(self, events: bytes) -> None:
        """Write `events` at once."""
        await self._write(events)

    async def end(self, events: bytes) -> None:
        """Write the last events of a complete stream, and end it."""
        if events:
            await self._write(events)
        await self._in_time(self.response.write_eof())

    async def fail(self, event: bytes) -> None:
        """End a stream that failed, with an event that says so.

        The connection stays usable, because the client may already have sent its next request on
        it.
        """
        with contextlib.suppress(ConnectionError):
            await self._write(event)
            await self._in_time(self.response.write_eof())

    async def _write(self, data: bytes) -> None:
        self._written_at = asyncio.get_running_loop().time()
        if not self.response.prepared:
            await self.response.prepare(self._request)
        if self._is_taken_at_once(data):
            await self.response.write(data)
        else:
            await self._in_time(self.response.write(data))

    def _is_taken_at_once(self, data: bytes) -> bool:
        """Whether writing `data` cannot wait for the client. A timer for each token would take as
        long as rendering it.
        """
        transport = self._request.transport
        if transport is None:
            return False
        return transport.get_write_buffer_size() + len(data) < _SMALL_BUFFER

    async def _in_time(self, writing: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._write_seconds):
                await writing
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the client stopped reading") from None

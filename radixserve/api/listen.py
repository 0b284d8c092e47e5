"""Accepts clients' connections up to the limit, and decides which ones are closed there.

Connections are accepted here and not by asyncio, because the number of open files is limited, and
some are reserved for the other processes and for health. A new connection beyond the limit takes
the place of the longest idle one. If none is idle, a few more are accepted, on which only health is
answered. Further connections wait in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from radixserve.api.access import has_keys, is_loopback
from radixserve.api.address import Address
from radixserve.api.connection import Connection
from radixserve.api.context import API
from radixserve.config import Settings
from radixserve.logs import Seldom

log = logging.getLogger(__name__)

EXTRA_CONNECTIONS: Final = 16
"""Connections beyond the limit, on which only health is answered."""

_AT_ONCE: Final = 64  # accepted before other tasks of the loop run
_TICK_SECONDS: Final = 0.5
_HANDSHAKE_SECONDS: Final = 10.0
_NO_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """Accepts connections for `app` at `address`, which it closes in the end."""

    def __init__(self, app: web.Application, address: Address) -> None:
        self._app = app
        self._address = address
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0
        )
        self._limit = address.max_connections
        self._sockets: Sequence[socket.socket] = ()  # between start and close
        self._connections: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._accepts = False
        self._seldom = Seldom(log)
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start to listen.

        Raises:
            StartupError: another process has begun to listen on the port.
        """
        await self._runner.setup()
        self._address.listen()
        self._sockets = self._address.sockets
        self._resume()
        self._ticking = asyncio.create_task(self._tick())

    async def close(self) -> None:
        """Stop accepting and close every connection."""
        if self._ticking is not None:
            self._ticking.cancel()
        self._pause()
        self._sockets = ()
        self._address.close()
        await self._runner.cleanup()

    @property
    def num_connections(self) -> int:
        """The number of open connections, including those in their TLS handshake."""
        return len(self._connections) + len(self._connecting)

    def lost(self, connection: Connection) -> None:
        """Called by a connection when it ends."""
        self._connections.discard(connection)
        self._resume()

    def _resume(self) -> None:
        if not self._accepts:
            loop = asyncio.get_running_loop()
            for each in self._sockets:
                loop.add_reader(each, self._accept, each)
            self._accepts = bool(self._sockets)

    def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            loop.remove_reader(each)
        self._accepts = False

    def _accept(self, listening: socket.socket) -> None:
        """Accept connections from the kernel's queue, as far as the limits allow."""
        for _ in range(_AT_ONCE):
            if self.num_connections >= self._limit + EXTRA_CONNECTIONS and not self._idle():
                self._pause()
                self._seldom.warning(f"{self.num_connections} connections are busy")
                return
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._not_accepted(error)
                return
            is_full = self.num_connections >= self._limit
            self._connect(accepted, is_extra=is_full and not self._close_longest_idle())

    def _not_accepted(self, error: OSError) -> None:
        """Accepting failed: close an idle connection to make room; the next tick tries again."""
        if error.errno not in _NO_RESOURCES:
            raise error
        self._seldom.warning(f"a connection cannot be accepted: {error.strerror}")
        if not self._close_longest_idle():
            self._pause()

    def _connect(self, accepted: socket.socket, *, is_extra: bool) -> None:
        accepted.setblocking(False)
        task = asyncio.create_task(self._serve(accepted, is_extra))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _serve(self, accepted: socket.socket, is_extra: bool) -> None:
        server = self._runner.server
        if server is None:
            accepted.close()
            return
        connection = Connection(server, self._app, self, is_extra=is_extra)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._address.tls,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS if self._address.tls else None,
            )
        except OSError:  # the client left, or its TLS is missing or not accepted
            accepted.close()
            return
        if connection.transport is not None:
            self._connections.add(connection)

    def _idle(self) -> list[Connection]:
        return [each for each in self._connections if each.is_idle]

    def _close_longest_idle(self) -> bool:
        """Close the connection that has been idle for longest; returns whether there was one."""
        idle = self._idle()
        if not idle:
            return False
        longest = min(idle, key=lambda each: each.idle_since)
        self._connections.discard(longest)
        longest.force_close()
        return True

    async def _tick(self) -> None:
        """Close connections whose headers do not arrive, and accept again after a lack of files."""
        loop = asyncio.get_running_loop()
        seconds = self._app[API].settings.header_read_seconds
        while True:
            await asyncio.sleep(min(_TICK_SECONDS, seconds))
            for each in [each for each in self._connections if each.is_late(loop.time(), seconds)]:
                each.force_close()
            self._resume()


def warn_if_open(settings: Settings) -> None:
    """Warn if every client that reaches the address may use the server."""
    if not has_keys(settings) and not settings.uds and not is_loopback(settings.host):
        log.warning(
            "listening on %s without an API key: whoever reaches this address can use the server "
            "(RADIXSERVE_API_KEY sets a key, api_key_file one for each tenant)",
            settings.host,
        )

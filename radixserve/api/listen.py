"""Listens for clients: sockets, TLS, the limit on connections, and which ones are closed at the
limit.

Connections are accepted here and not by asyncio, because the number of open files is limited, and
some are reserved for the other processes and for health. A new connection beyond the limit takes
the place of the longest idle one. If none is idle, a few more are accepted, on which only health is
answered. Further connections wait in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
import ssl
import stat
from pathlib import Path
from typing import Final

from aiohttp import web

from radixserve.api.access import is_loopback
from radixserve.api.connection import Connection
from radixserve.api.context import API
from radixserve.config import Settings
from radixserve.errors import StartupError
from radixserve.logs import Seldom

log = logging.getLogger(__name__)

KEPT_FILES: Final = 128
"""Open files reserved for other purposes: the engine, tokenizers, files, and
`EXTRA_CONNECTIONS`.
"""
EXTRA_CONNECTIONS: Final = 16
"""Connections beyond the limit, on which only health is answered."""

_MOST_CONNECTIONS: Final = 4096
_BACKLOG: Final = 512  # connections that the kernel keeps until they are accepted
_AT_ONCE: Final = 64  # accepted before other tasks of the loop run
_TICK_SECONDS: Final = 0.5
_HANDSHAKE_SECONDS: Final = 10.0
_NO_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def connection_limit(chosen: int) -> int:
    """The limit on connections; `chosen` is the setting, 0 for automatic.

    Raises:
        StartupError: the limit of open files is too low for the chosen number, or for any.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = _MOST_CONNECTIONS if files == resource.RLIM_INFINITY else files - KEPT_FILES
    if room < 1:
        raise StartupError(
            f"the limit of {files} open files (ulimit -n) leaves none for connections: "
            f"{KEPT_FILES} are kept for other things"
        )
    if files != resource.RLIM_INFINITY and chosen > room:
        raise StartupError(
            f"max_connections={chosen} does not fit the limit of {files} open files (ulimit -n), "
            f"of which {KEPT_FILES} are kept for other things"
        )
    return chosen or min(_MOST_CONNECTIONS, room)


class Listener:
    """Accepts connections for `app` at the address in `settings`."""

    def __init__(self, app: web.Application, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0
        )
        self._tls = _tls(settings)
        self._limit = connection_limit(settings.max_connections)
        self._sockets: list[socket.socket] = []
        self._connections: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._accepts = False
        self._seldom = Seldom(log)
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Start to listen. Returns the address as a URL, with the port that the system chose if the
        setting is 0.

        Raises:
            StartupError: the address or the socket file cannot be used.
        """
        await self._runner.setup()
        if self._settings.uds:
            self._sockets = [_unix_socket(self._settings.uds)]
        else:
            self._sockets = await _tcp_sockets(self._settings.host, self._settings.port)
        self._resume()
        self._ticking = asyncio.create_task(self._tick())
        return self._url()

    async def close(self) -> None:
        """Stop accepting and close every connection."""
        if self._ticking is not None:
            self._ticking.cancel()
        self._pause()
        for each in self._sockets:
            each.close()
        if self._settings.uds and self._sockets:
            with contextlib.suppress(OSError):
                os.unlink(self._settings.uds)
        self._sockets = []
        await self._runner.cleanup()

    @property
    def port(self) -> int:
        """The port listened on."""
        return int(self._sockets[0].getsockname()[1])

    @property
    def num_connections(self) -> int:
        """The number of open connections, including those in their TLS handshake."""
        return len(self._connections) + len(self._connecting)

    def lost(self, connection: Connection) -> None:
        """Called by a connection when it ends."""
        self._connections.discard(connection)
        self._resume()

    def _url(self) -> str:
        if self._settings.uds:
            return f"unix:{self._settings.uds}"
        scheme = "http" if self._tls is None else "https"
        host, port = self._sockets[0].getsockname()[:2]
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

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
                ssl=self._tls,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS if self._tls else None,
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
    if settings.api_key is None and not settings.uds and not is_loopback(settings.host):
        log.warning(
            "listening on %s without an API key: whoever reaches this address can use the server "
            "(RADIXSERVE_API_KEY sets a key)",
            settings.host,
        )


async def _tcp_sockets(host: str, port: int) -> list[socket.socket]:
    """One listening socket for each address of `host`, all with the same port."""
    loop = asyncio.get_running_loop()
    found: list[socket.socket] = []
    try:
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(infos):
            port = port or (int(found[0].getsockname()[1]) if found else 0)
            try:
                bound = socket.create_server(
                    (str(address[0]), port), family=family, backlog=_BACKLOG
                )
            except OSError as error:
                if error.errno in _NOT_HERE and len(infos) > 1:
                    continue
                raise
            bound.setblocking(False)
            found.append(bound)
    except OSError as error:
        for each in found:
            each.close()
        raise StartupError(f"cannot listen on {host}:{port}: {_cause(error)}") from error
    if not found:
        raise StartupError(f"cannot listen on {host}:{port}: no address of it is on this machine")
    return found


def _cause(error: OSError) -> str:
    """What the system says, without the address that `socket.create_server` adds, and what helps
    where another process has the port.
    """
    said = (error.strerror or str(error)).partition(" (while attempting")[0]
    in_use = error.errno == errno.EADDRINUSE
    return f"{said}; --port names another, and 0 lets the system choose" if in_use else said


def _unix_socket(path: str) -> socket.socket:
    """A listening socket at `path`; replaces a socket file that a dead server left."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listening.bind(path)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise StartupError(f"cannot listen on {path}: {error.strerror or error}") from error
    listening.setblocking(False)
    return listening


def _remove_stale(path: str) -> None:
    """Remove a socket file if no process listens on it. Raises OSError if one does, or if the file
    is not a socket.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(Path(path).lstat().st_mode):
            raise OSError(errno.EEXIST, "the file exists and is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(path) == 0:
                raise OSError(errno.EADDRINUSE, "a server listens there already")
        os.unlink(path)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    """The certificate and its key, None for plain HTTP. Raises StartupError if they cannot be
    used.
    """
    if settings.ssl_certfile is None:
        if settings.ssl_keyfile is not None:
            raise StartupError("ssl_keyfile is of no use without ssl_certfile")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(
            settings.ssl_certfile, settings.ssl_keyfile, password=_refuse_password
        )
    except (OSError, ValueError) as error:
        key = f" and {settings.ssl_keyfile}" if settings.ssl_keyfile else ""
        raise StartupError(
            f"cannot use the certificate in {settings.ssl_certfile}{key}: "
            f"{getattr(error, 'strerror', None) or error}"
        ) from error
    return context


def _refuse_password() -> str:
    raise ValueError("the private key has a password, which the server cannot ask for")

"""The address that the server listens on: its sockets, its certificate, and how many connections
are taken.

It is taken before anything else starts, so that a port in use is refused at once and not after a
model was loaded. Knows no application; `api.listen` accepts the connections.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from radixserve.config import Settings
from radixserve.errors import StartupError

KEPT_FILES: Final = 128
"""Open files reserved for other purposes: the engine, tokenizers, files, and connections beyond
the limit (`api.listen`).
"""

_BACKLOG: Final = 512  # connections that the kernel keeps until they are accepted
_MOST_CONNECTIONS: Final = 4096
_NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@dataclass(frozen=True, slots=True)
class Address:
    """An address that this process holds until `close`. Clients can connect from `listen` on;
    before that TCP connections are refused, and those to a socket file wait.
    """

    sockets: Sequence[socket.socket]
    max_connections: int
    uds: str | None = None  # the socket file
    tls: ssl.SSLContext | None = None

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The address as clients write it, with the port that the system chose if the setting
        is 0.
        """
        if self.uds:
            return f"unix:{self.uds}"
        scheme = "http" if self.tls is None else "https"
        host, port = self.sockets[0].getsockname()[:2]
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def listen(self) -> None:
        """Let clients connect.

        Raises:
            StartupError: another process has begun to listen on the port meanwhile.
        """
        for each in self.sockets:
            try:
                each.listen(_BACKLOG)
            except OSError as error:
                raise StartupError(f"cannot listen on port {self.port}: {_cause(error)}") from error

    def close(self) -> None:
        """Give the address back; a second call does nothing."""
        held = [each for each in self.sockets if each.fileno() >= 0]
        for each in held:
            each.close()
        if self.uds and held:
            with contextlib.suppress(OSError):
                os.unlink(self.uds)


def take_address(settings: Settings) -> Address:
    """Bind the address in `settings`. A host name is looked up, which may take as long as the name
    service does.

    Raises:
        StartupError: the address, the socket file or the certificate cannot be used, or the limit
            of open files is too low.
    """
    limit, tls = connection_limit(settings.max_connections), _tls(settings)
    if settings.uds:
        return Address([_unix_socket(settings.uds)], limit, settings.uds, tls)
    return Address(_tcp_sockets(settings.host, settings.port), limit, None, tls)


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


def _tcp_sockets(host: str, port: int) -> list[socket.socket]:
    """One socket for each address of `host`, all bound to the same port."""
    found: list[socket.socket] = []
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(infos):
            port = port or (int(found[0].getsockname()[1]) if found else 0)
            try:
                found.append(_bound(family, str(address[0]), port))
            except OSError as error:
                if error.errno not in _NOT_HERE or len(infos) == 1:
                    raise
    except OSError as error:
        for each in found:
            each.close()
        raise StartupError(f"cannot listen on {host}:{port}: {_cause(error)}") from error
    if not found:
        raise StartupError(f"cannot listen on {host}:{port}: no address of it is on this machine")
    return found


def _bound(family: int, host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises OSError if a process listens there."""
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A server that ended a moment ago does not block the port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound


def _cause(error: OSError) -> str:
    """What the system says, and what helps where another process has the port."""
    said = error.strerror or str(error)
    in_use = error.errno == errno.EADDRINUSE
    return f"{said}; --port names another, and 0 lets the system choose" if in_use else said


def _unix_socket(path: str) -> socket.socket:
    """A socket at `path`; replaces a file that a dead server left. It listens at once, because
    another server that starts could not tell it from such a file otherwise.
    """
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

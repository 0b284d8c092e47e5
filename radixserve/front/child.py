"""One life of the engine process as the front sees it: start, messages in both directions, end.

Owns the child process and the front's end of the socket. Knows nothing of requests and nothing of
restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable

import msgspec

from radixserve.front.watchdog import TICK_SECONDS, Watchdog, processor_seconds
from radixserve.machine import THIS
from radixserve.messages import FrameReader, Ready, Start, ToEngine, ToFront, encode

log = logging.getLogger(__name__)

EXIT_SECONDS = 4.0  # in which the engine has to exit by itself once its socket is closed
LOADING_EXIT_SECONDS = 1.0  # the same while it still loads
KILL_SECONDS = 0.5  # in which the system has to end it once it is killed
_READ_BYTES = 1 << 20
_COMMAND = (sys.executable, "-m", "radixserve.engine.process")


class Hung(Exception):
    """The engine process stopped doing anything, and was killed."""


class Child:
    """An engine process, which is run once."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._has_loaded = False

    @property
    def pid(self) -> int | None:
        """The process id; None before the start and after the end."""
        return (
            self._process.pid
            if self._process is not None and self._process.returncode is None
            else None
        )

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent. False before the start, and once the process is known to
        have ended.
        """
        return self._writer is not None

    def send(self, message: ToEngine) -> None:
        """Queue `message`. It is dropped if the process has ended, which `run` reports anyway."""
        if self._writer is not None:
            self._writer.write(encode(message))

    async def run(
        self, start: Start, handle: Callable[[ToFront], None], watchdog: Watchdog
    ) -> int | None:
        """Start the process, send it `start`, and pass its messages to `handle`. Returns its exit
        code once it has ended.

        If anything else ends this (an exception of `handle`, cancellation), the process is killed
        afterwards unless it exits by itself. The result is None if the system has not ended it even
        then: a process that waits for a frozen file system ends when that answers.

        Raises:
            OSError: the process cannot be started.
            ValueError: it sent something that is no message.
            Hung: `watchdog` found that it does nothing any more.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await _spawn(theirs, start.settings.threads)
            reader, self._writer = await asyncio.open_connection(sock=ours)
            self.send(start)
            await self._read(reader, handle, watchdog)
        except Hung:
            self._kill()
            raise
        finally:
            code = await self._end(ours)
        return code

    async def _read(
        self, reader: asyncio.StreamReader, handle: Callable[[ToFront], None], watchdog: Watchdog
    ) -> None:
        frames, decoder = FrameReader(), msgspec.msgpack.Decoder(ToFront)
        with contextlib.suppress(ConnectionError):
            while data := await self._data(reader, watchdog):
                for body in frames.feed(data):
                    message = decoder.decode(body)
                    watchdog.heard(message)
                    self._has_loaded = self._has_loaded or isinstance(message, Ready)
                    handle(message)

    async def _data(self, reader: asyncio.StreamReader, watchdog: Watchdog) -> bytes:
        """The next bytes that the process sends; empty at the end of the stream.

        Raises:
            Hung: `watchdog` found that the process does nothing any more.
        """
        began = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(TICK_SECONDS):
                    return await reader.read(_READ_BYTES)
            except TimeoutError:
                now = time.monotonic()
                if watchdog.is_hung(now - began, processor_seconds(self.pid) if self.pid else None):
                    raise Hung from None
                began = now

    async def _end(self, ours: socket.socket) -> int | None:
        """Close the socket, at which the engine exits. It is killed if it does not, or if this is
        cancelled.
        """
        writer, self._writer = self._writer, None
        (ours if writer is None else writer).close()
        process = self._process
        if process is None:
            return 0  # it was never started; the caller is raising
        try:
            # An engine that still loads has nothing to finish, and does not read its socket.
            patience = EXIT_SECONDS if self._has_loaded else min(EXIT_SECONDS, LOADING_EXIT_SECONDS)
            await _ended(process, patience)
        finally:
            if process.returncode is None:
                self._kill()
                await _ended(process, KILL_SECONDS)
        if process.returncode is None:
            log.warning(
                "the engine process %d is killed; the system has not ended it yet", process.pid
            )
        return process.returncode

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


async def _ended(process: asyncio.subprocess.Process, seconds: float) -> None:
    """Wait until `process` has ended, for at most `seconds`."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), seconds)


async def _spawn(sock: socket.socket, threads: int) -> asyncio.subprocess.Process:
    """Start the engine process with `sock`. The sizes of its thread pools are set by its
    environment, because they are fixed when libraries are imported.
    """
    return await asyncio.create_subprocess_exec(
        *(*_COMMAND, str(sock.fileno())),
        pass_fds=[sock.fileno()],
        stdin=asyncio.subprocess.DEVNULL,
        env=_thread_pools(threads) | os.environ,
    )


def _thread_pools(threads: int) -> dict[str, str]:
    """Defaults that the operator's environment may override.

    A thread that waits for the others spins briefly and then sleeps. With the default, which spins
    for long, a step takes several times as long as soon as anything else needs the cores.
    """
    return {
        "OMP_NUM_THREADS": str(threads or THIS.cores()),
        "GOMP_SPINCOUNT": "5000",
    }

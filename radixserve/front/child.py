"""One life of the engine process as the front sees it: start, messages in both directions, end. It
may begin with a time in which it imports, or waits as a spare, and serves nothing.

Owns the child process and the front's end of the socket. Knows nothing of requests and nothing of
restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

import msgspec

from radixserve.config import Settings
from radixserve.front.watchdog import TICK_SECONDS, Watchdog, processor_seconds
from radixserve.interrupts import hidden_from_children
from radixserve.machine import THIS
from radixserve.messages import (
    FrameReader,
    Prepare,
    Prepared,
    Ready,
    Start,
    ToEngine,
    ToFront,
    encode,
)

log = logging.getLogger(__name__)

EXIT_SECONDS = 4.0  # in which the engine has to exit by itself once its socket is closed
LOADING_EXIT_SECONDS = 1.0  # the same while it still loads
KILL_SECONDS = 2.0  # in which the system has to end it once it is killed
_READ_BYTES = 1 << 20
_COMMAND = (sys.executable, "-m", "radixserve.engine.process")
SPARE = "spare"  # the last word of a spare's command line, for people who look at it


class Hung(Exception):
    """The engine process stopped doing anything, and was killed."""


class Child:
    """An engine process, which is run once."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._frames, self._decoder = FrameReader(), msgspec.msgpack.Decoder(ToFront)
        self._writer: asyncio.StreamWriter | None = None
        self.is_prepared = False  # a spare that has imported everything
        self._is_started = False  # it got `Start`, so it is no spare any more
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
        """Start the process unless it was begun, send it `start`, and pass its messages to
        `handle`. Returns its exit code once it has ended.

        If anything else ends this (an exception of `handle`, cancellation), the process is killed
        afterwards unless it exits by itself. The result is None if the system has not ended it even
        then: a process that waits for a frozen file system ends when that answers.

        Raises:
            OSError: the process cannot be started.
            ValueError: it sent something that is no message.
            Hung: `watchdog` found that it does nothing any more.
        """
        try:
            if self._process is None:
                await self._begin(start.settings.threads)
            self.send(start)
            self._is_started = True
            await self._read(handle, watchdog)
        except Hung:
            self._kill()
            raise
        finally:
            code = await self.end()
        return code

    async def begin(self, settings: Settings) -> None:
        """Start the process, which imports what an engine with these settings needs. `run` can
        follow at any time.

        Raises:
            OSError: the process cannot be started.
        """
        await self._begin(settings.threads)
        self.send(Prepare(settings, at_once=True))

    async def prepare(self, prepare: Prepare) -> bool:
        """Start the process as a spare, if it was not started, and return when it has imported
        everything. False if it ended instead.

        Raises:
            OSError: the process cannot be started.
            ValueError: it sent something that is no message.
        """
        if self._process is None:
            await self._begin(prepare.settings.threads, SPARE)
        self.send(prepare)
        while messages := await self._received():
            if any(isinstance(each, Prepared) for each in messages):
                self.is_prepared = True
                return True
        return False

    async def ended(self) -> None:
        """Return when a spare has ended. It sends nothing."""
        assert self._reader is not None, "it was started"
        with contextlib.suppress(ConnectionError):
            await self._reader.read(_READ_BYTES)

    async def _begin(self, threads: int, *words: str) -> None:
        """Start the process and open its socket; raises OSError if that is impossible."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = await _spawn(theirs, threads, *words)
                self._reader, self._writer = await asyncio.open_connection(sock=ours)
            except BaseException:
                ours.close()
                raise

    async def _read(self, handle: Callable[[ToFront], None], watchdog: Watchdog) -> None:
        while messages := await self._received(watchdog):
            for message in messages:
                watchdog.heard(message)
                self._has_loaded = self._has_loaded or isinstance(message, Ready)
                handle(message)

    async def _received(self, watchdog: Watchdog | None = None) -> list[ToFront]:
        """The next messages, at least one; empty at the end of the stream."""
        with contextlib.suppress(ConnectionError):
            while data := await self._data(watchdog):
                if bodies := list(self._frames.feed(data)):
                    return [self._decoder.decode(body) for body in bodies]
        return []

    async def _data(self, watchdog: Watchdog | None) -> bytes:
        """The next bytes that the process sends; empty at the end of the stream. Without
        `watchdog` it waits for any length of time.

        Raises:
            Hung: `watchdog` found that the process does nothing any more.
        """
        assert self._reader is not None, "it was started"
        if watchdog is None:
            return await self._reader.read(_READ_BYTES)
        began = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(TICK_SECONDS):
                    return await self._reader.read(_READ_BYTES)
            except TimeoutError:
                now = time.monotonic()
                if watchdog.is_hung(now - began, processor_seconds(self.pid) if self.pid else None):
                    raise Hung from None
                began = now

    async def end(self) -> int | None:
        """Close the socket, at which the process exits. It is killed if it does not, or if this is
        cancelled. Returns its exit code; None if the system has not ended it even then.
        """
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        process = self._process
        if process is None:
            return 0  # it was never started; the caller is raising
        try:
            await _ended(process, self._exit_seconds)
        finally:
            if process.returncode is None:
                self._kill()
                await _ended(process, KILL_SECONDS)
        if process.returncode is None:
            log.warning(
                "the engine process %d was killed %.0f s ago and has not ended yet",
                process.pid,
                KILL_SECONDS,
            )
        return process.returncode

    @property
    def _exit_seconds(self) -> float:
        """How long the process may take to exit. An engine that still loads has nothing to finish,
        and does not read its socket; a spare can be killed at once.
        """
        if self._has_loaded:
            return EXIT_SECONDS
        return min(EXIT_SECONDS, LOADING_EXIT_SECONDS) if self._is_started else 0.0

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


def how_it_ended(code: int | None) -> str:
    """How a process with this exit code ended; a negative code is a signal's number."""
    if code is not None and -code in signal.valid_signals():
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


async def _ended(process: asyncio.subprocess.Process, seconds: float) -> None:
    """Wait until `process` has ended, for at most `seconds`."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), seconds)


async def _spawn(sock: socket.socket, threads: int, *words: str) -> asyncio.subprocess.Process:
    """Start the engine process with `sock`, and `words` behind its number. It inherits no other
    descriptor but those of its output. The sizes of its thread pools are set by its
    environment, because they are fixed when libraries are imported.
    """
    with hidden_from_children():
        return await asyncio.create_subprocess_exec(
            *(*_COMMAND, str(sock.fileno()), *words),
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

"""One tokenizer process as the front sees it: start, questions and answers, end.

Knows nothing of queues and restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys

import msgspec

from radixserve.errors import ModelRefused
from radixserve.interrupts import hidden_from_children
from radixserve.text.messages import (
    LENGTH,
    TRY_SECONDS,
    Answer,
    Loaded,
    Ready,
    Refused,
    Start,
    ToFront,
    encode,
    frame_length,
)

_COMMAND = (sys.executable, "-m", "radixserve.text.worker")
# The process answers one question at a time, so threads would only take memory and cores. A panic
# that a text causes is logged in one line, without a backtrace.
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "RUST_BACKTRACE": "0",
}
_EXIT_SECONDS = 1.0  # for a process whose socket has closed; it is killed after that


class WorkerDied(Exception):
    """The process ended, or sent something that is not a message."""


class WorkerProcess:
    """A tokenizer process; start it once."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._decoder = msgspec.msgpack.Decoder(ToFront)

    @property
    def pid(self) -> int | None:
        """The process id; None before the start and after the end."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self, start: Start) -> Ready:
        """Spawn the process and wait until it accepts questions; about 1.5 s.

        Raises:
            ModelRefused: the model cannot be served, or its template takes too long.
            WorkerDied: the process ended while it started.
            OSError: the process cannot be spawned.
        """
        await self._spawn()
        await self._send(encode(start))
        answer = await self._hear(start.load_seconds, "loading the tokenizer")
        if isinstance(answer, Loaded):
            tried = "trying the model's chat template and tokenizer"
            answer = await self._hear(start.render_seconds + TRY_SECONDS, tried)
        if isinstance(answer, Refused):
            raise ModelRefused(answer.message)
        if not isinstance(answer, Ready):
            raise WorkerDied(f"said {type(answer).__name__} while it started")
        return answer

    async def ask(self, question: bytes, seconds: float) -> Answer:
        """Send a question, given as its frame, and return the answer.

        Raises:
            TimeoutError: no answer came within `seconds`; the process must be killed.
            WorkerDied: the process ended.
        """
        async with asyncio.timeout(seconds):
            await self._send(question)
            answer = await self._receive()
        if not isinstance(answer, Answer):
            raise WorkerDied(f"answered {type(answer).__name__}")
        return answer

    async def kill(self) -> None:
        """Kill the process, even if it is busy; returns when it is gone."""
        if self._writer is not None:
            self._writer.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _hear(self, seconds: float, what: str) -> ToFront:
        try:
            async with asyncio.timeout(seconds):
                return await self._receive()
        except TimeoutError:
            raise ModelRefused(f"{what} took longer than {seconds:g} s") from None

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            with theirs, hidden_from_children():
                self._process = await asyncio.create_subprocess_exec(
                    *(*_COMMAND, str(theirs.fileno())),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    env=os.environ | _ENVIRONMENT,
                )
            self._reader, self._writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise

    async def _send(self, frame: bytes) -> None:
        assert self._writer is not None, "the process was not started"
        try:
            self._writer.write(frame)
            await self._writer.drain()
        except ConnectionError:
            raise WorkerDied(await self._ending()) from None

    async def _receive(self) -> ToFront:
        assert self._reader is not None, "the process was not started"
        try:
            length = frame_length(await self._reader.readexactly(LENGTH.size))
            message: ToFront = self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise WorkerDied(await self._ending()) from None
        except (ValueError, msgspec.MsgspecError) as error:
            raise WorkerDied(f"said what is no message ({error})") from None
        return message

    async def _ending(self) -> str:
        """How the process ended, as the beginning of a sentence."""
        process = self._process
        assert process is not None, "the process was not started"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _EXIT_SECONDS)
        code = process.returncode
        if code is None:
            return "closed its socket"
        return f"ended with exit code {code}" if code >= 0 else f"was ended by {_signal(-code)}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

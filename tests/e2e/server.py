"""A real `radixserve serve` process for tests: started on a port the system chooses, ended by its
process id.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.signals import usual_signals

_ENGINE = "radixserve.engine.process"
START_SECONDS = 240  # the first start on a machine converts the model and compiles the kernels
STOP_SECONDS = 60


@dataclass
class Server:
    """A running server and what it has printed."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Ask it to end and wait; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(STOP_SECONDS)


@contextlib.contextmanager
def running(*args: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """`radixserve serve ARGS` until the block ends."""
    command = [sys.executable, "-m", "radixserve", "serve", "--port", "0", *args]
    with usual_signals():
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | (env or {}),
        )
    server = Server(process)
    reader, arriving = _read_in_background(server)
    try:
        server.url = _wait_for_url(server, arriving)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def engines(server: Server) -> list[int]:
    """Process id of its engine; nothing for a moment after the engine's death. A spare is none
    until it takes over.
    """
    return [each.pid for each in _children(server, _ENGINE) if not each.is_spare]


def spares(server: Server) -> list[int]:
    """Process ids of spare engines, ready or not."""
    return [each.pid for each in _children(server, _ENGINE) if each.is_spare]


def tokenizers(server: Server) -> list[int]:
    """Process ids of its tokenizer processes."""
    return [each.pid for each in _children(server, "radixserve.text.worker")]


@dataclass(frozen=True)
class _Listed:
    """A process as `ps` lists it."""

    pid: int
    is_spare: bool


def _children(server: Server, module: str) -> list[_Listed]:
    listed = subprocess.run(
        ["ps", "-wwo", "pid=,comm=,args=", "--ppid", str(server.process.pid)],
        capture_output=True,
        text=True,
    )
    found = []
    for pid, name, *words in map(str.split, listed.stdout.splitlines()):
        if module in words:
            # A spare that has taken over keeps its command line, but not its name.
            found.append(_Listed(int(pid), words[-1] == "spare" and name != "radix-engine"))
    return found


def _read_in_background(server: Server) -> tuple[threading.Thread, queue.Queue[str | None]]:
    """A pipe nobody reads would block the server once it is full."""
    arriving: queue.Queue[str | None] = queue.Queue()
    stdout = server.process.stdout
    assert stdout is not None

    def read() -> None:
        for line in stdout:
            server.lines.append(line)
            arriving.put(line)
        arriving.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return reader, arriving


def _wait_for_url(server: Server, arriving: queue.Queue[str | None]) -> str:
    while True:
        line = arriving.get(timeout=START_SECONDS)
        assert line is not None, "the server ended before it was ready:\n" + "".join(server.lines)
        if found := re.search(r"listening on (http://\S+)", line):
            return found[1]

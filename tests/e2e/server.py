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
    """Process id of its engine; nothing for a moment after the engine's death."""
    return _children(server, "radixserve.engine.process")


def tokenizers(server: Server) -> list[int]:
    """Process ids of its tokenizer processes."""
    return _children(server, "radixserve.text.worker")


def _children(server: Server, module: str) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(server.process.pid)],
        capture_output=True,
        text=True,
    )
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if module in line.split()]


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

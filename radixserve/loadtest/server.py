"""Starts a separate server for a measurement. It is ready when it prints its line, and is stopped
by its process id.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from radixserve.loadtest.target import CannotStart

COMMAND = (sys.executable, "-m", "radixserve", "serve")
READY = "listening on "
STOP_SECONDS = 30.0
ROOT = Path(__file__).resolve().parents[2]  # where `-m radixserve` is found in a checkout


@contextmanager
def server(
    options: Sequence[str], command: Sequence[str] = COMMAND, log: IO[bytes] | None = None
) -> Iterator[str]:
    """Run a server on a port that the system chooses until the block ends, and give its URL. Raises
    CannotStart.

    Its log goes to the file `log`; without one, to our own stderr.
    """
    process = subprocess.Popen(
        [*command, "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=_environment(),
    )
    try:
        assert process.stdout is not None, "stdout is a pipe"
        for line in process.stdout:
            if READY in line:
                yield line.split(READY, 1)[1].split()[0]
                return
        raise CannotStart(f"the server ended with code {process.wait()} before it was ready")
    finally:
        _stop(process)


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()

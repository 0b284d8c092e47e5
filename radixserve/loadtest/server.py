"""Starts a separate server for a measurement, waits until its model is loaded, and stops it by its
process id.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from radixserve.loadtest.target import CannotStart

COMMAND = (sys.executable, "-m", "radixserve", "serve")
LISTENING = "listening on "
POLL_SECONDS = 0.05
STOP_SECONDS = 30.0
ROOT = Path(__file__).resolve().parents[2]  # where `-m radixserve` is found in a checkout


@contextmanager
def server(
    options: Sequence[str], command: Sequence[str] = COMMAND, log: IO[bytes] | None = None
) -> Iterator[str]:
    """Run a server on a port that the system chooses until the block ends, and give its URL once
    it is ready: nothing that is measured waits for the model to be loaded. Raises CannotStart.

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
        url = _listening(process)
        while not _is_ready(url):
            if process.poll() is not None:
                raise _ended(process)
            time.sleep(POLL_SECONDS)
        yield url
    finally:
        _stop(process)


def _listening(process: subprocess.Popen[str]) -> str:
    """The URL that the server prints when clients can connect."""
    assert process.stdout is not None, "stdout is a pipe"
    for line in process.stdout:
        if LISTENING in line:
            return line.split(LISTENING, 1)[1].split()[0]
    raise _ended(process)


def _is_ready(url: str) -> bool:
    """Whether the server has loaded its model. One that has no page for that is ready at once."""
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=10):
            return True
    except urllib.error.HTTPError as error:
        return error.code == 404
    except OSError:
        return False


def _ended(process: subprocess.Popen[str]) -> CannotStart:
    return CannotStart(f"the server ended with code {process.wait()} before it was ready")


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

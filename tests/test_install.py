"""What `make` tells while pip installs, and what it gives on when pip fails."""

from __future__ import annotations

import os
import pty
import re
import runpy
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tools" / "install.py"


def test_large_downloads_and_the_last_phase_are_told() -> None:
    lines = [
        "Collecting torch>=2\n",
        "  Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl (190.5 MB)\n",
        "  Downloading idna-3.20-py3-none-any.whl (72 kB)\n",
        "Requirement already satisfied: numpy\n",
        "Installing collected packages: torch, idna\n",
    ]
    said: deque[str] = deque(maxlen=2)
    assert list(runpy.run_path(str(SCRIPT))["news"](lines, said)) == [
        ("looking at torch>=2", False),
        ("downloading torch (190.5 MB)", True),
        ("downloading idna (72 kB)", False),
        ("installing 2 packages", True),
    ]
    assert list(said) == lines[-2:]


def test_a_failure_shows_the_last_words_and_keeps_the_status() -> None:
    command = [
        sys.executable,
        str(SCRIPT),
        sys.executable,
        "--no-index",
        "radixserve-no-such-thing",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "radixserve-no-such-thing" in done.stderr


@pytest.mark.slow
def test_on_a_terminal_the_seconds_go_on_while_pip_says_nothing() -> None:
    code = (
        "import runpy, sys, time\n"
        "def events():\n"
        "    yield 'installing 78 packages', True\n"
        "    time.sleep(3.5)\n"
        "runpy.run_path(sys.argv[1])['show'](events())\n"
    )
    terminal, end = pty.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        done = subprocess.run([sys.executable, "-c", code, str(SCRIPT)], stdout=end, timeout=60)
        said = shown.read(10000).decode()
        os.close(end)
    assert done.returncode == 0
    assert len(set(re.findall(r"(\d+) s  installing 78 packages", said))) >= 2
    assert said.endswith("\r\033[K")

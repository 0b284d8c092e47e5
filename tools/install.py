"""Runs pip and tells how far it is: `python tools/install.py PYTHON ARGUMENTS-OF-PIP-INSTALL ...`.

On a terminal one line shows what pip does now; elsewhere each large download and each phase is a
line. If pip fails its last words are shown and its exit status is given on. Needs the standard
library only, because nothing is installed yet when it runs.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator

LARGE_MB = 5.0  # downloads below that are told on a terminal only
LAST_WORDS = 30  # lines of pip's output that are shown when it fails
_SIZE = re.compile(r"^\s*Downloading (\S+).*\((\d+(?:\.\d+)?) (kB|MB|GB)\)")
_TO_MB = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}


def main() -> int:
    """Run pip and return its exit status."""
    python, *arguments = sys.argv[1:]
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar", "off"]
    child = subprocess.Popen(
        [*pip, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert child.stdout is not None, "asked for a pipe"
    said = deque[str](maxlen=LAST_WORDS)
    show(news(child.stdout, said))
    status = child.wait()
    if status:
        print("".join(said), file=sys.stderr)
    return status


def news(lines: Iterable[str], said: deque[str]) -> Iterator[tuple[str, bool]]:
    """What pip does, and whether that takes long; `said` keeps its last lines."""
    for line in lines:
        said.append(line)
        if found := _SIZE.match(line):
            name, size, unit = found.groups()
            is_large = float(size) * _TO_MB[unit] >= LARGE_MB
            yield f"downloading {name.split('/')[-1].split('-')[0]} ({size} {unit})", is_large
        elif line.startswith("Collecting "):
            yield f"looking at {line.split()[1]}", False
        elif line.startswith("Installing collected packages:"):
            number = line.count(",") + 1
            yield f"installing {number} package{'s' if number > 1 else ''}", True


def show(events: Iterable[tuple[str, bool]]) -> None:
    """One line that changes on a terminal, lines for what takes long elsewhere."""
    if sys.stdout.isatty():
        show_changing(events)
        return
    started = time.monotonic()
    for text, takes_long in events:
        if takes_long:
            print(f"  {time.monotonic() - started:4.0f} s  {text}", flush=True)


def show_changing(events: Iterable[tuple[str, bool]]) -> None:
    """The newest event and the seconds so far in one line, drawn again every second, because pip
    says nothing while it installs packages.
    """
    started, over, newest = time.monotonic(), threading.Event(), "starting pip"

    def draw() -> None:
        while not over.wait(1):
            seconds = f"{time.monotonic() - started:4.0f} s"
            print(f"\r\033[K  {seconds}  {newest[:60]}", end="", flush=True)

    drawing = threading.Thread(target=draw, daemon=True)
    drawing.start()
    try:
        for newest, _ in events:  # noqa: B007 - the thread reads it
            pass
    finally:
        over.set()
        drawing.join()
        print("\r\033[K", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())

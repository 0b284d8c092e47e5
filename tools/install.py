"""Runs pip and tells how far it is: `python tools/install.py PYTHON ARGUMENTS-OF-PIP-INSTALL ...`.

On a terminal one line shows what pip does now; elsewhere each large download and each phase is a
line. If pip fails its last words are shown and its exit status is given on. Needs the standard
library only, because nothing is installed yet when it runs.
"""

from __future__ import annotations

import re
import subprocess
import sys
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
            yield f"installing {line.count(',') + 1} packages", True


def show(events: Iterable[tuple[str, bool]]) -> None:
    """One line that changes on a terminal, lines for what takes long elsewhere."""
    started, terminal = time.monotonic(), sys.stdout.isatty()
    for text, takes_long in events:
        seconds = f"{time.monotonic() - started:4.0f} s"
        if terminal:
            print(f"\r\033[K  {seconds}  {text[:60]}", end="", flush=True)
        elif takes_long:
            print(f"  {seconds}  {text}", flush=True)
    if terminal:
        print("\r\033[K", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())

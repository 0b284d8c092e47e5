"""What a soak reads of a server from outside: its processes (/proc, so Linux only), its metrics
page, its folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

ROOT = Path(__file__).resolve().parent.parent  # where `-m radixserve` is found in a checkout
QUIET_SECONDS = 120.0
_TEMPORARY = ".tmp"
_RUNS = "runs/"
_ENGINE = "radixserve.engine.process"


def front_pid() -> int:
    """The server that this process started, by the engine that is its child. Raises LookupError."""
    rows = _processes()
    for parent, command in rows.values():
        if _ENGINE in command and parent in rows and rows[parent][0] == os.getpid():
            return parent
    raise LookupError("no server of this process has an engine")


def engine_pid(front: int) -> int | None:
    """The engine of a server; None between its death and the next. A spare is none."""
    return next(
        (
            pid
            for pid, (parent, command) in _processes().items()
            if parent == front and _ENGINE in command
        ),
        None,
    )


def _processes() -> dict[int, tuple[int, str]]:
    """Parent and command of each process that has not ended. Spare engines are left out."""
    listed = subprocess.run(
        ["ps", "-wweo", "pid=,ppid=,stat=,comm=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 4) for line in listed.splitlines()]
    return {
        int(row[0]): (int(row[1]), row[4])
        for row in rows
        if len(row) == 5 and not row[2].startswith("Z") and not is_spare(row[3], row[4])
    }


def is_spare(name: str, command: str) -> bool:
    """Whether a process is a spare engine. One that has taken over keeps its command line, but not
    its name.
    """
    return command.endswith(" spare") and name != "radix-engine"


@dataclass(frozen=True, slots=True)
class Reading:
    """A server at rest. Sizes in bytes."""

    front_bytes: int  # resident
    engine_bytes: int
    front_files: int  # open descriptors
    front_threads: int
    index_bytes: int  # of the folder's files that are not runs: the index and its log


def read(front: int, folder: Path) -> Reading:
    """Raises LookupError while there is no engine, OSError if a process ends meanwhile."""
    engine = engine_pid(front)
    if engine is None:
        raise LookupError("there is no engine")
    num_files, num_threads = len(os.listdir(f"/proc/{front}/fd")), int(_status(front)["Threads"])
    beside = sum(size for name, size in sizes(folder).items() if not name.startswith(_RUNS))
    return Reading(_resident(front), _resident(engine), num_files, num_threads, beside)


def _resident(pid: int) -> int:
    return int(_status(pid)["VmRSS"].split()[0]) << 10


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below a folder, by its path there; a file that is just being renamed
    counts once.
    """
    found: dict[str, int] = {}
    for at, _, names in os.walk(folder):
        for name in names:
            path = Path(at, name)
            try:
                found[str(path.relative_to(folder))] = path.stat().st_size
            except FileNotFoundError:
                continue
    return {
        name: size
        for name, size in found.items()
        if name.removesuffix(_TEMPORARY) not in found.keys() - {name}
    }


async def metrics(http: aiohttp.ClientSession) -> Mapping[str, float]:
    """The metrics page: value by name and labels, as they stand there."""
    async with http.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")
    }


def is_quiet(page: Mapping[str, float]) -> bool:
    """Nothing runs, nothing waits, nothing is leased, and the engine has said so."""
    busy = (
        "radixserve_requests_running",
        "radixserve_requests_waiting",
        'radixserve_kv_bytes{state="leased"}',
    )
    return not any(page[name] for name in busy) and page["radixserve_engine_up"] == 1


async def rests(http: aiohttp.ClientSession) -> bool:
    """See `is_quiet`, now."""
    return is_quiet(await metrics(http))


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = QUIET_SECONDS) -> bool:
    """Wait for a condition; False if it does not come within `seconds`."""
    deadline = time.monotonic() + seconds
    while not await holds():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.1)
    return True


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What is there after a server has stopped. Sizes in bytes."""

    folder_bytes: int
    run_bytes: int  # of all files of runs
    index_bytes: int  # ... by the index
    num_temporary: int  # files that were being written, or a broken index put aside
    num_processes: int
    checked: str  # the last line of `radixserve cache check`, or what it complained of
    log_errors: list[str]  # with their tracebacks, deaths of the engine excepted


_ENTRIES = re.compile(
    r"^(?=\d{4}-\d\d-\d\d )", re.MULTILINE
)  # of a log; a traceback belongs to the line before


def leftovers(folder: Path, log: Path, front: int) -> Leftovers:
    """Look at everything once; `folder` is the disk tier's, `front` the server that was."""
    checked, files = _checked(folder), sizes(folder)
    runs = [size for name, size in files.items() if name.startswith(_RUNS)]
    return Leftovers(
        sum(files.values()),
        sum(runs),
        _index_bytes(folder),
        sum(name.endswith((_TEMPORARY, ".broken")) for name in files),
        sum(front in (pid, parent) for pid, (parent, _) in _processes().items()),
        checked,
        [entry for entry in _ENTRIES.split(log.read_text(errors="replace")) if _is_error(entry)],
    )


def _index_bytes(folder: Path) -> int:
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite")) as connection:
        ((total,),) = connection.execute("SELECT coalesce(sum(bytes), 0) FROM runs")
    return int(total)


def _is_error(entry: str) -> bool:
    """Told as an error, or a traceback, and not of a kill."""
    return (" ERROR " in entry and "ended by SIGKILL" not in entry) or "Traceback" in entry


def _checked(folder: Path) -> str:
    command = [sys.executable, "-m", "radixserve", "cache", "check", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = (ended.stdout + ended.stderr).strip().splitlines()
    return (
        lines[-1]
        if ended.returncode == 0 and lines
        else f"exit {ended.returncode}: {' '.join(lines[:3])}"
    )

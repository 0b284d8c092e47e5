"""The circumstances of a measurement: server, model, machine, date and command.

Without them numbers cannot be compared. Facts that a server does not report are left out.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from radixserve.loadtest.target import Target

TIMEOUT_SECONDS = 5.0
_LOOPBACK = re.compile(r"localhost|127\.[\d.]+|::1")


@dataclass(frozen=True, slots=True)
class About:
    """The circumstances that the report shows. Empty: not known."""

    url: str
    command: str
    date: str  # with the offset from UTC
    machine: str  # the processor and cores of the machine that sent the requests
    model: str = ""
    server: str = ""  # name and version
    engine: str = ""  # device, dtype and other facts that the server reports
    phases: str = ""  # what differs between them

    def rows(self) -> Iterator[tuple[str, str]]:
        """Label and text of each known fact."""
        local = _LOOPBACK.fullmatch(urlsplit(self.url).hostname or "")
        rows = {
            "phases": self.phases,
            "server": self.server or "its version is not told (no GET /version)",
            "model": self.model,
            "engine": self.engine,
            "machine": self.machine
            + ("" if local else " (of the load test; the server is remote)"),
            "address": self.url,
            "date": self.date,
            "command": self.command,
        }
        yield from ((label, text) for label, text in rows.items() if text)


def about(target: Target, command: Sequence[str]) -> About:
    """The facts known before the server is contacted; `command` is the command line."""
    return About(
        url=_without_password(target.url),
        command=shlex.join(map(_without_password, _without_key(command))),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        machine=f"{_processor()}, {_num_cores()} cores, {platform.system()}",
    )


async def described(target: Target) -> dict[str, str]:
    """The fields of `About` that the server reports at /version; none if it does not.

    Never raises, because a load test does not depend on them.
    """
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.get(target.url.removesuffix("/v1") + "/version") as response,
        ):
            if response.status != 200:
                return {}
            return read_version(json.loads(await response.text(errors="replace")))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return {}


def read_version(told: Any) -> dict[str, str]:
    """The same fields from the body of /version, which may be any JSON."""
    if not isinstance(told, dict) or not isinstance(told.get("version"), str):
        return {}
    engine = told.get("engine")
    if not isinstance(engine, dict):  # vLLM reports its version only
        return {"server": f"version {told['version']}"}
    parts = [str(engine[name]) for name in ("device", "dtype") if engine.get(name)]
    if attention := engine.get("attention"):
        parts.append(f"attention: {attention}")
    if isinstance(exact := engine.get("exact"), bool):
        parts.append("a cache hit equals a miss bit for bit" if exact else "not exact")
    return {"server": f"radixserve {told['version']}", "engine": ", ".join(parts)}


def _without_password(text: str) -> str:
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def _without_key(words: Sequence[str]) -> Iterator[str]:
    """The words of a command line with API keys replaced by a word."""
    before = ""
    for word in words:
        if before == "--api-key":
            yield "(secret)"
        else:
            yield "--api-key=(secret)" if word.startswith("--api-key=") else word
        before = word


def _num_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """The processor's name as the system reports it, otherwise its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()

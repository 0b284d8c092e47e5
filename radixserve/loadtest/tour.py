"""Two minutes with the server: the shared-system-prompt workload cold, warm and without the cache,
and a report.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from radixserve.loadtest import finish
from radixserve.loadtest.bench import Bench
from radixserve.loadtest.record import RecordFile
from radixserve.loadtest.server import COMMAND, server
from radixserve.loadtest.target import Target, base_url
from radixserve.loadtest.workload import load_workload

SMALL = (
    "groups=3",
    "users=4",
    "turns=2",
    "system_words=800",
)  # what 2 cores do in two minutes, without a cache, too


def main(arguments: Sequence[str], prog: str, console: Console) -> int:
    """Start servers, replay, write the report and say where it is; 0 if every request was answered."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("bench"), help="where the report goes [%(default)s]"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the workload"
    )
    parser.add_argument("--command", nargs="+", default=list(COMMAND), help="what starts a server")
    parser.add_argument(
        "options", nargs="*", metavar="-- OPTION", help="of radixserve serve, for both servers"
    )
    chosen = parser.parse_args(arguments)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with RecordFile(chosen.folder / "requests.jsonl") as file:
        bench = Bench(Target(""), file, console)
        interrupted = finish.kept(bench, lambda: _measure(bench, chosen))
    html = chosen.folder / "report.html"
    written = finish.write(bench, chosen.folder / "summary.json", html, console)
    finish.show(bench, "shared system prompts: the cache cold, warm, and switched off", console)
    if bench.phases and html.exists():
        console.print(f"report: {html.resolve()}")
    return finish.INTERRUPTED if interrupted else int(bench.failed or not written)


def _measure(bench: Bench, chosen: argparse.Namespace) -> None:
    for phases, extra in ((("cold", "warm"), ()), (("no cache",), ("--no-cache",))):
        bench.console.print(f"starting a server {' '.join(extra)}".rstrip())
        with server(["--log-level", "error", *extra, *chosen.options], chosen.command) as url:
            bench.target = Target(base_url(url))
            for phase in phases:
                asyncio.run(bench.run(load_workload("shared_system", [*SMALL, *chosen.set]), phase))

"""A benchmark of two minutes: the shared-system-prompt workload cold, warm and without the cache,
with a report.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from radixserve.loadtest import finish
from radixserve.loadtest.bench import Bench
from radixserve.loadtest.measures import Summary
from radixserve.loadtest.record import RecordFile
from radixserve.loadtest.server import COMMAND, server
from radixserve.loadtest.target import Target, base_url
from radixserve.loadtest.workload import Workload, load_workload

BASELINE = "no cache"
PHASES = (
    "cold: a server that has seen none of the prompts; warm: the same server, the same prompts "
    "again; no cache: a server that was started with --no-cache"
)
SMALL = (
    "groups=3",
    "users=4",
    "turns=2",
    "system_words=800",
)  # takes two minutes on 2 cores, including the phase without a cache


def main(arguments: Sequence[str], prog: str, console: Console) -> int:
    """Start servers, replay the workload, write the report and print its path; 0 if every request
    was answered.
    """
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
        command = [*prog.split(), *arguments]
        bench = Bench(Target(""), file, console, command=command, baseline=BASELINE)
        bench.phases_are = PHASES
        console.print(expectation(workload(chosen.set)))
        interrupted = finish.kept(bench, lambda: _measure(bench, chosen))
    html = chosen.folder / "report.html"
    written = finish.write(bench, chosen.folder / "summary.json", html, console)
    finish.show(bench, "shared system prompts: the cache cold, warm, and switched off", console)
    if bench.phases and html.exists():
        console.print(f"report: {html.resolve()}")
    return finish.INTERRUPTED if interrupted else int(bench.failed or not written)


def workload(changes: Sequence[str]) -> Workload:
    """The workload of every phase. Raises WorkloadError."""
    return load_workload("shared_system", [*SMALL, *changes])


def expectation(replayed: Workload) -> str:
    """A sentence that says how long the benchmark takes, and why."""
    return (
        "This takes about two minutes on 2 cores, with fewer or slower ones longer, and up to two "
        "minutes more the first time, when kernels are compiled. "
        f"{replayed.num_requests} requests with long shared prompts are sent three times: to a "
        "server that has seen none of them (cold), to the same one again (warm), and to one "
        "without a cache, which computes every prompt from its first token and takes most of the "
        "time."
    )


def key_of_server(options: Sequence[str]) -> str | None:
    """The API key of a server that is started with these options and our environment."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--api-key", default=os.environ.get("RADIXSERVE_API_KEY"))
    key: str | None = parser.parse_known_args(list(options))[0].api_key
    return key


def rest_of_it(cold: Summary) -> str:
    """An upper bound for the time of the phase without a cache, from the time of the cold phase."""
    computed = cold.prompt_tokens - cold.cached_tokens
    if not cold.cached_tokens or not computed:
        return ""
    seconds = cold.wall_seconds * cold.prompt_tokens / computed
    return (
        f"without a cache {cold.prompt_tokens:,} prompt tokens are computed and not {computed:,}: "
        f"up to {max(seconds, 1):.0f} s"
    )


def _measure(bench: Bench, chosen: argparse.Namespace) -> None:
    for phases, extra in ((("cold", "warm"), ()), ((BASELINE,), ("--no-cache",))):
        bench.console.print(f"starting a server {' '.join(extra)}".rstrip())
        if extra and bench.phases and (told := rest_of_it(bench.phases[0].summary)):
            bench.console.print(told)
        with server(["--log-level", "error", *extra, *chosen.options], chosen.command) as url:
            bench.target = Target(base_url(url), api_key=key_of_server(chosen.options))
            for phase in phases:
                asyncio.run(bench.run(workload(chosen.set), phase))

"""The main figure: the shared-system-prompt workload with the prefix cache and without, each on a server of its own.

    python benchmarks/figures.py [--repeats 1] [-- more options of radixserve serve]

Starts each server with nothing cached, replays loadtest/workloads/shared_system.toml, stops the server, and prints one
Markdown table.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from loadtest.replay import Run, Target, base_url, replay  # noqa: E402 - found only after the line above
from loadtest.report import Summary, summarise  # noqa: E402
from loadtest.workload import load_workload  # noqa: E402

READY = "listening on "
STOP_SECONDS = 30.0


@contextmanager
def server(command: list[str], options: list[str]) -> Iterator[str]:
    """The URL of a server that runs until the block ends. Raises SystemExit if it does not come up."""
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=_environment())
    try:
        assert process.stdout is not None, "stdout is a pipe"
        for line in process.stdout:
            if READY in line:
                yield line.split(READY, 1)[1].split()[0]
                return
        raise SystemExit(f"the server ended with code {process.wait()} before it was ready")
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


def measure(command: list[str], options: list[str], workload: str) -> Summary:
    """One cold run of `workload`. Raises SystemExit if any request fails."""
    loaded = load_workload(workload)
    run = Run(loaded, loaded.clients)
    with server(command, options) as url:
        asyncio.run(replay(run, Target(base_url(url)), lambda record: None))
    summary = summarise(run)
    if summary.errors or summary.unsent:
        raise SystemExit(f"not every request was answered: {summary.errors}, {summary.unsent} not sent")
    return summary


def table(cached: Summary, uncached: Summary) -> str:
    """Markdown: a row per run and a row of ratios."""
    lines = [
        "| | wall, s | requests/s | tokens/s | TTFT p50, s | TTFT p99, s | e2e p50, s | hit share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, s in (("cache", cached), ("--no-cache", uncached)):
        times = [value.p50 if value else 0.0 for value in (s.ttft, s.e2e)]
        tail = s.ttft.p99 if s.ttft else 0.0
        rates = f"{s.wall_seconds:.1f} | {s.requests_per_second:.2f} | {s.tokens_per_second:.1f}"
        lines.append(f"| {name} | {rates} | {times[0]:.3f} | {tail:.3f} | {times[1]:.3f} | {s.hit_share or 0.0:.3f} |")
    ratio = cached.requests_per_second / uncached.requests_per_second
    lines.append(
        f"| ratio | | **{ratio:.2f}x** | {cached.tokens_per_second / uncached.tokens_per_second:.2f}x | | | | |"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="shared_system")
    parser.add_argument("--repeats", type=int, default=1, help="pairs of runs, a table each; the order alternates")
    parser.add_argument("--command", nargs="+", default=[sys.executable, "-m", "radixserve", "serve"])
    parser.add_argument("options", nargs="*", help="of radixserve serve, for both runs")
    chosen = parser.parse_args()
    for repeat in range(chosen.repeats):
        runs = {}
        for extra in ([[], ["--no-cache"]], [["--no-cache"], []])[repeat % 2]:
            options = ["--port", "0", *extra, *chosen.options]
            runs[bool(extra)] = measure(chosen.command, options, chosen.workload)
        print(table(runs[False], runs[True]), flush=True)


if __name__ == "__main__":
    main()

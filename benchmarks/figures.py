"""The main figure: the shared-system-prompt workload with the prefix cache and without, each on a server of its own.

    python benchmarks/figures.py [--repeats 1] [-- more options of radixserve serve]

Starts each server with nothing cached, replays loadtest/workloads/shared_system.toml, stops the server, and prints one
Markdown table.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from loadtest.measures import Summary, summarise  # noqa: E402 - found only after the line above
from loadtest.replay import Run, replay  # noqa: E402
from loadtest.server import COMMAND, server  # noqa: E402
from loadtest.target import Target, base_url  # noqa: E402
from loadtest.workload import load_workload  # noqa: E402


def measure(command: list[str], options: list[str], workload: str) -> Summary:
    """One cold run of `workload`. Raises SystemExit if any request fails."""
    run = Run(load_workload(workload))
    with server(options, command) as url:
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
        times = [value.p50 if value else 0.0 for value in (s.latency.ttft, s.latency.e2e)]
        tail = s.latency.ttft.p99 if s.latency.ttft else 0.0
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
    parser.add_argument("--command", nargs="+", default=list(COMMAND))
    parser.add_argument("options", nargs="*", help="of radixserve serve, for both runs")
    chosen = parser.parse_args()
    for repeat in range(chosen.repeats):
        runs = {}
        for extra in ([[], ["--no-cache"]], [["--no-cache"], []])[repeat % 2]:
            options = [*extra, *chosen.options]
            runs[bool(extra)] = measure(chosen.command, options, chosen.workload)
        print(table(runs[False], runs[True]), flush=True)


if __name__ == "__main__":
    main()

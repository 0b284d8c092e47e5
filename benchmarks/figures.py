"""The main figure: the shared-system-prompt workload with the prefix cache and without, each on a
server of its own.

    python benchmarks/figures.py [--dtype bfloat16] [--repeats 1] [--cache-only]
        [-- more options of radixserve serve]

Starts each server with nothing cached, replays loadtest/workloads/shared_system.toml, stops the
server, and prints two Markdown tables: the runs, and how far the one with the cache is from the
roofline (roofline.py says how it is counted). The rate of multiplication is measured before each
pair of runs and after it, while no server runs; uncached prompt tokens and generated tokens are
those of the answers' usage. The servers compute in `--dtype`, and so is the rate measured. With
`--cache-only`, minutes shorter, the run without the cache is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from roofline import Counts, Roofline  # noqa: E402 - found only after the line above

from radixserve.loadtest.measures import Summary, summarise  # noqa: E402
from radixserve.loadtest.replay import Run, replay  # noqa: E402
from radixserve.loadtest.server import COMMAND, server  # noqa: E402
from radixserve.loadtest.target import Target, base_url  # noqa: E402
from radixserve.loadtest.workload import load_workload  # noqa: E402

CACHE, NO_CACHE = "cache", "--no-cache"


def measure(command: list[str], options: list[str], workload: str) -> tuple[Summary, Counts]:
    """One cold run of `workload`. Raises SystemExit if any request fails."""
    run = Run(load_workload(workload))
    with server(options, command) as url:
        asyncio.run(replay(run, Target(base_url(url)), lambda record: None))
    summary = summarise(run)
    if summary.errors or summary.unsent:
        raise SystemExit(
            f"not every request was answered: {summary.errors}, {summary.unsent} not sent"
        )
    generated = sum(record.completion_tokens for record in run.records)
    return summary, Counts(summary.prompt_tokens - summary.cached_tokens, generated)


def table(runs: dict[str, Summary]) -> str:
    """Markdown: a row per run, and a row of ratios if there are two."""
    lines = [
        "| | wall, s | requests/s | tokens/s | TTFT p50, s | TTFT p99, s | e2e p50, s | hit "
        "share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, s in runs.items():
        times = [value.p50 if value else 0.0 for value in (s.latency.ttft, s.latency.e2e)]
        tail = s.latency.ttft.p99 if s.latency.ttft else 0.0
        rates = f"{s.wall_seconds:.1f} | {s.requests_per_second:.2f} | {s.tokens_per_second:.1f}"
        lines.append(
            f"| {name} | {rates} | {times[0]:.3f} | {tail:.3f} | {times[1]:.3f} | "
            f"{s.hit_share or 0.0:.3f} |"
        )
    if len(runs) > 1:
        cached, uncached = runs[CACHE], runs[NO_CACHE]
        ratio = cached.requests_per_second / uncached.requests_per_second
        tokens = cached.tokens_per_second / uncached.tokens_per_second
        lines.append(f"| ratio | | **{ratio:.2f}x** | {tokens:.2f}x | | | | |")
    return "\n".join(lines)


def limit_table(wall: float, counts: Counts, roofline: Roofline) -> str:
    """Markdown: how long the multiplications alone would take, and how many times as long the run
    took.
    """
    rates = ", ".join(f"{name} {max(found) / 1e9:.0f}" for name, found in roofline.rates.items())
    rows = []
    for name, strict in (("2 x parameters", False), ("lm head for generated tokens only", True)):
        limit = roofline.limit(counts, strict=strict)
        rows.append(f"| {name} | {limit:.2f} | {wall:.2f} | **{wall / limit:.2f}x** |")
    lines = [
        f"{counts.prompt_tokens:,} uncached prompt tokens, {counts.generated_tokens:,} "
        "generated tokens, "
        f"{roofline.parameters / 1e6:.1f} million parameters; GFLOP/s: {rates}.",
        "",
        "| operations of a token | limit, s | wall, s | wall / limit |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", default="shared_system")
    parser.add_argument(
        "--repeats", type=int, default=1, help="pairs of runs, a table each; the order alternates"
    )
    parser.add_argument(
        "--cache-only", action="store_true", help="leave out the run without the cache"
    )
    parser.add_argument("--command", nargs="+", default=list(COMMAND))
    parser.add_argument(
        "--model", default="auto", help="folder or hub name; auto: the embedded model"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("options", nargs="*", help="of radixserve serve, for both runs")
    chosen = parser.parse_args()
    roofline = Roofline(chosen.model, getattr(torch, chosen.dtype))
    for repeat in range(chosen.repeats):
        roofline.measure()
        runs, counts = {}, {}
        names = [CACHE] if chosen.cache_only else [CACHE, NO_CACHE]
        for name in reversed(names) if repeat % 2 else names:
            options = [
                "--model",
                chosen.model,
                "--dtype",
                chosen.dtype,
                *([NO_CACHE] if name == NO_CACHE else []),
                *chosen.options,
            ]
            runs[name], counts[name] = measure(chosen.command, options, chosen.workload)
        roofline.measure()
        print(table({name: runs[name] for name in names}), end="\n\n")
        print(limit_table(runs[CACHE].wall_seconds, counts[CACHE], roofline), flush=True)


if __name__ == "__main__":
    main()

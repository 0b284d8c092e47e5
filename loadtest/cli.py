"""The command line: options in, live progress, a table out, and an exit code that scripts can trust."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.check import Difference, check, comparable
from loadtest.record import Record, RecordFile
from loadtest.replay import CannotStart, Run, Target, base_url, replay
from loadtest.report import Summary, summarise, table_of
from loadtest.workload import WorkloadError, load_workload

OK, ERRORS, CANNOT_START, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one load test; the exit code is 0 only if every request ended as it should."""
    options = _parser().parse_args(arguments)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        workload = load_workload(options.workload)
        target = Target(base_url(options.url), options.model, os.environ.get("OPENAI_API_KEY"), options.timeout)
        run = Run(workload, options.clients or workload.clients, options.leave)
        with RecordFile(options.out) as file:
            return _test(run, target, file, options, console)
    except (WorkloadError, CannotStart, OSError) as error:
        errors.print(f"[red]loadtest:[/] {escape(str(error))}")
        return CANNOT_START


def _test(run: Run, target: Target, file: RecordFile, options: argparse.Namespace, console: Console) -> int:
    differences: list[Difference] = []
    interrupted = False
    try:
        with _progress(console, options.quiet) as progress:
            asyncio.run(_replay(run, target, file, progress))
            if options.check and not run.server_lost:
                differences = asyncio.run(_check(run, target, progress))
    except KeyboardInterrupt:
        interrupted = True
    summary = summarise(run)
    console.print(table_of(summary, f"{run.workload.name} at {target.url}, {run.clients} clients"))
    _explain(run, summary, differences, file, console)
    if options.summary:
        options.summary.write_text(json.dumps(dataclasses.asdict(summary), indent=1) + "\n", encoding="utf-8")
    if interrupted:
        return INTERRUPTED
    return ERRORS if summary.errors or differences or file.error else OK


async def _replay(run: Run, target: Target, file: RecordFile, progress: Progress) -> None:
    task = progress.add_task("requests", total=run.workload.num_requests, note="")
    errors = tokens = 0

    def on_record(record: Record) -> None:
        nonlocal errors, tokens
        errors += record.error is not None
        tokens += record.completion_tokens
        file.write(record)
        elapsed = progress.tasks[task].elapsed or 1e-9
        progress.update(task, advance=1, note=f"{tokens / elapsed:.0f} tokens/s, {errors} errors")

    await replay(run, target, on_record)


async def _check(run: Run, target: Target, progress: Progress) -> list[Difference]:
    task = progress.add_task("checks", total=len(comparable(run)), note="each greedy request again, alone")
    return await check(run, target, lambda: progress.advance(task))


def _explain(run: Run, summary: Summary, differences: list[Difference], file: RecordFile, console: Console) -> None:
    """One line for each thing that is wrong, below the table."""
    shown: set[str] = set()
    for record in run.records:
        if record.error and record.detail and record.error not in shown:
            shown.add(record.error)
            console.print(f"[red]{escape(record.error)}[/], first at {record.conversation}: {escape(record.detail)}")
    if run.server_lost:
        console.print(f"[red]the server stopped taking connections[/]; {summary.unsent} requests were not sent")
    for difference in differences:
        record = difference.sent.record
        console.print(f"[red]differs[/] {record.conversation}, turn {record.turn} ({record.kind}): {difference.reason}")
    if file.error:
        console.print(f"[red]the record file is incomplete:[/] {escape(str(file.error))}")


def _progress(console: Console, quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True, disable=quiet)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__)
    parser.add_argument("workload", nargs="?", default="shared_system", help="a name in loadtest/workloads, or a file")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="any OpenAI-compatible server")
    parser.add_argument("--model", default="", help="default: the first that the server lists")
    parser.add_argument("--clients", type=_positive, help="conversations at a time; default: the workload's own")
    parser.add_argument("--leave", type=_share, default=0.0, help="share of clients that disconnect at a random moment")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds until a request counts as hung")
    parser.add_argument("--check", action="store_true", help="compare every greedy answer with the one given alone")
    parser.add_argument("--out", type=Path, help="JSON lines, one per request")
    parser.add_argument("--summary", type=Path, help="the numbers of the table as JSON")
    parser.add_argument("--quiet", action="store_true", help="no live progress")
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _share(text: str) -> float:
    if not 0.0 <= (value := float(text)) <= 1.0:
        raise argparse.ArgumentTypeError("must lie between 0 and 1")
    return value

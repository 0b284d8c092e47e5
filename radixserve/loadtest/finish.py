"""The end of a load test, even of a failed one: writes the files, then prints the table and a line
for each problem.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from radixserve.loadtest import page, results
from radixserve.loadtest.bench import Bench
from radixserve.loadtest.headline import headline
from radixserve.loadtest.report import notes, problems, table_of
from radixserve.loadtest.target import CannotStart

INTERRUPTED = 130  # exit code


def kept(bench: Bench, measure: Callable[[], None]) -> bool:
    """Run `measure`; returns whether Ctrl-C stopped it. The measurements until then are in `bench`.

    Raises:
        CannotStart: nothing was measured.
    """
    try:
        measure()
    except KeyboardInterrupt:
        return True
    except CannotStart as error:
        if not bench.phases:
            raise
        bench.lost = str(error)
    return False


def show(bench: Bench, title: str, console: Console) -> None:
    """Print the measurements and the problems."""
    summaries = {phase.run.phase: phase.summary for phase in bench.phases}
    if summaries:
        console.print(table_of(summaries, title, bench.objective))
    for label, text in bench.about.rows() if bench.about else ():
        console.print(f"{label + ':':9}{escape(text)}")
    for phase in bench.phases:
        for line in problems(phase.run, phase.summary):
            console.print(f"[red]{escape(line)}[/]")
    for line in notes([phase.run for phase in bench.phases], bench.differences):
        console.print(escape(line))
    for sentence in headline(summaries, bench.baseline) if len(summaries) > 1 else ():
        console.print(f"[bold]{escape(sentence)}[/]")
    if bench.lost:
        console.print(f"[red]stopped:[/] {escape(bench.lost)}")
    if bench.file.error:
        console.print(f"[red]the record file is incomplete:[/] {escape(str(bench.file.error))}")


def write(bench: Bench, summary: Path | None, html: Path | None, console: Console) -> bool:
    """Write the requested files; false if one could not be written. The others are written
    nevertheless.
    """
    complete = True
    for path, write_to in ((summary, results.write), (html, page.write)):
        if path is None or not bench.phases or bench.about is None:
            continue
        try:
            write_to(path, bench.phases, bench.about, bench.baseline)
        except OSError as error:
            console.print(f"[red]cannot write {escape(str(path))}:[/] {escape(str(error))}")
            complete = False
    return complete

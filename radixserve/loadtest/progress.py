"""Live progress: a bar on a terminal, otherwise a plain line at intervals; nothing if quiet."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from radixserve.loadtest.measures import quantiles
from radixserve.loadtest.record import Record
from radixserve.loadtest.replay import Run
from radixserve.loadtest.report import seconds

PLAIN_SECONDS = 5.0
RECENT = 50  # number of answers in the displayed TTFT


class Live:
    """The progress display of a run. A context manager."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        bar = console.is_terminal and not quiet
        self._console = console
        self._plain = not bar and not quiet
        self._progress = Progress(
            *columns,
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not bar,
        )
        self._said = time.monotonic()

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def follow(self, run: Run) -> Follow:
        """Add a task for a run."""
        task = self._progress.add_task(run.phase, total=run.workload.num_requests, note="")
        return Follow(self, run, task)

    def checks(self, total: int) -> TaskID:
        """Add a task for requests that are sent again."""
        return self._progress.add_task(
            "check", total=total, note="each greedy request again, alone"
        )

    def advance(self, task: TaskID, name: str, note: str | None = None) -> None:
        """Advance a task by one."""
        self._progress.advance(task)
        if note is not None:
            self._progress.update(task, note=note)
        if self._plain and time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            done, total = (
                self._progress.tasks[task].completed,
                self._progress.tasks[task].total or 0,
            )
            with contextlib.suppress(
                OSError
            ):  # the output is closed or the disk full: go on measuring
                self._console.print(f"{name}: {done:.0f}/{total:.0f} {note or ''}", markup=False)


class Follow:
    """Counts the records of one run as they arrive."""

    def __init__(self, live: Live, run: Run, task: TaskID) -> None:
        self._live, self._run, self._task = live, run, task
        self._start = time.monotonic()
        self._tokens = self._errors = self._prompt = self._cached = 0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def take(self, record: Record) -> None:
        """Show one more record."""
        self._tokens += record.completion_tokens
        self._errors += record.error is not None
        if record.cached_tokens is not None:
            self._prompt += record.prompt_tokens
            self._cached += record.cached_tokens
        if record.ttft is not None:
            self._recent.append(record.ttft)
        self._live.advance(self._task, self._run.phase, self._note())

    def _note(self) -> str:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        parts = [f"{self._run.in_flight} in flight", f"{self._tokens / elapsed:.0f} tokens/s"]
        if self._prompt:
            parts.append(f"{self._cached / self._prompt:.0%} cached")
        if measured := quantiles(self._recent):
            parts.append(f"TTFT {seconds(measured.p50)}")
        return ", ".join([*parts, f"{self._errors} errors"])

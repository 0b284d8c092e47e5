"""What came of a soak: the rows of its table with what was wanted, and live progress while it goes
on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from soak_clients import CALL, KILLED_TWICE, WRONG, Tally
from soak_readings import Leftovers, Reading

PLAIN_SECONDS = 10.0
MIB = 1 << 20
# Both are far above what two readings of one undisturbed process differ by (allocators keep what
# they once took) and far below what a leak per request would come to in ten minutes, some thousand
# requests.
FRONT_BYTES = 24 * MIB
ENGINE_BYTES = 64 * MIB
FRONT_THREADS = 2  # a pool begins its threads (api.context) when calls meet, maybe late
INDEX_BYTES = 1 * MIB  # what the log may keep when it is empty


@dataclass(slots=True)
class Outcome:
    """Everything that was counted and read."""

    tally: Tally
    kills: int = 0
    folder_peak: int = 0  # bytes
    baseline: Reading | None = None
    end: Reading | None = None
    page: Mapping[str, float] = field(default_factory=dict)
    left: Leftovers | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    metric: str
    value: str
    wanted: str
    ok: bool


def exactly(metric: str, value: float, wanted: float) -> Row:
    return Row(metric, f"{value:,.0f}", f"{wanted:,.0f}", value == wanted)


def some(metric: str, value: float) -> Row:
    """Without any the soak would show nothing."""
    return Row(metric, f"{value:,.0f}", "some", value > 0)


def at_most(metric: str, value: float, most: float) -> Row:
    return Row(metric, f"{value:,.0f}", f"at most {most:,.0f}", value <= most)


def rows(outcome: Outcome, disk_budget: int) -> list[Row]:
    """The whole table; `disk_budget` in bytes."""
    return [
        *_answers(outcome.tally),
        *_calls(outcome.tally),
        *_deaths(outcome),
        *_memory(outcome.page),
        *_tiers(outcome.page),
        *_processes(outcome),
        *_folder(outcome, disk_budget),
    ]


def missing(outcome: Outcome) -> list[str]:
    """What should have happened some time and has not yet."""
    seen = [
        *_answers(outcome.tally),
        *_calls(outcome.tally),
        *_deaths(outcome),
        *_memory(outcome.page),
        *_tiers(outcome.page),
    ]
    return [row.metric for row in seen if row.wanted == "some" and not row.ok]


def _answers(tally: Tally) -> Iterator[Row]:
    yield some("answers compared", tally.right)
    yield exactly("wrong answers", tally.failures[WRONG], 0)
    yield exactly("lost requests", tally.lost, 0)
    yield exactly("requests ended because the engine died twice", tally.failures[KILLED_TWICE], 0)
    yield some("clients that left", tally.left)
    yield some("bad requests refused", tally.refused)
    ended = tally.right + tally.left + tally.refused + tally.failures.total()
    ended -= tally.failures[CALL]
    yield exactly("requests that ended, of those sent", ended, tally.sent)


def _calls(tally: Tally) -> Iterator[Row]:
    for kind in ("explain", "warm", "look", "pin", "unpin", "drop", "flush", "configure"):
        yield some(f"calls of the operator: {kind}", tally.calls[kind])
    yield exactly("calls of the operator without a right answer", tally.failures[CALL], 0)


def _deaths(outcome: Outcome) -> Iterator[Row]:
    yield some("kills of the engine", outcome.kills)
    restarts = {
        cause: outcome.page[f'radixserve_engine_restarts_total{{cause="{cause}"}}']
        for cause in ("crash", "hang")
    }
    yield exactly("restarts of the engine", restarts["crash"], outcome.kills)
    yield exactly("restarts of an engine that hung", restarts["hang"], 0)
    yield some(
        "times a new engine went on with a request",
        outcome.page["radixserve_requests_resumed_total"],
    )


def _memory(page: Mapping[str, float]) -> Iterator[Row]:
    kv = {
        state: page[f'radixserve_kv_bytes{{state="{state}"}}']
        for state in ("budget", "free", "cached", "leased")
    }
    yield exactly("bytes of K/V leased at rest", kv["leased"], 0)
    yield exactly("bytes of K/V free or cached at rest", kv["free"] + kv["cached"], kv["budget"])
    yield some("bytes of K/V cached at rest", kv["cached"])
    yield some("tokens evicted from the device", page["radixserve_evicted_tokens_total"])
    yield some("preemptions", page["radixserve_preemptions_total"])


def _tiers(page: Mapping[str, float]) -> Iterator[Row]:
    for tier in ("host", "disk"):
        for direction in ("down", "up"):
            name = f'radixserve_tier_tokens_total{{direction="{direction}",tier="{tier}"}}'
            yield some(f"tokens copied {direction}: {tier}", page[name])
    yield some("runs evicted from the disk", page["radixserve_store_evicted_runs_total"])
    yield exactly(
        "stored files that were not what they should be",
        page["radixserve_store_verify_failures_total"],
        0,
    )
    errors = sum(
        value for name, value in page.items() if name.startswith("radixserve_store_errors_total")
    )
    yield exactly("errors of the disk", errors, 0)


def _processes(outcome: Outcome) -> Iterator[Row]:
    before, after = outcome.baseline, outcome.end
    if before is None or after is None:
        raise ValueError("the soak has not ended")
    yield _back(
        "resident memory of the front, MiB", after.front_bytes, before.front_bytes, FRONT_BYTES
    )
    yield _back(
        "resident memory of the engine, MiB", after.engine_bytes, before.engine_bytes, ENGINE_BYTES
    )
    yield at_most("open files of the front", after.front_files, before.front_files)
    yield Row(
        "threads of the front",
        str(after.front_threads),
        f"at most {FRONT_THREADS} above {before.front_threads}",
        after.front_threads <= before.front_threads + FRONT_THREADS,
    )


def _back(metric: str, value: int, baseline: int, more: int) -> Row:
    """Bytes that may be `more` than at the baseline."""
    wanted = f"at most {more / MIB:,.0f} above {baseline / MIB:,.1f}"
    return Row(metric, f"{value / MIB:,.1f}", wanted, value <= baseline + more)


def _folder(outcome: Outcome, disk_budget: int) -> Iterator[Row]:
    left, before, after = outcome.left, outcome.baseline, outcome.end
    if left is None or before is None or after is None:
        raise ValueError("the soak has not ended")
    yield _back(
        "index and log in the folder, MiB", after.index_bytes, before.index_bytes, INDEX_BYTES
    )
    yield at_most("largest size of the folder, bytes", outcome.folder_peak, disk_budget)
    yield at_most("size of the folder after the stop, bytes", left.folder_bytes, disk_budget)
    yield exactly("bytes of runs by the index, of those in files", left.index_bytes, left.run_bytes)
    yield exactly("temporary files", left.num_temporary, 0)
    yield Row("`radixserve cache check`", left.checked, "0 problems", "0 problems" in left.checked)
    yield exactly("processes left behind", left.num_processes, 0)
    yield exactly("errors in the log, deaths excepted", len(left.log_errors), 0)


def table(shown: list[Row]) -> str:
    """Markdown."""
    lines = [
        f"| {row.metric} | {row.value} | {row.wanted} | {'yes' if row.ok else '**no**'} |"
        for row in shown
    ]
    return "\n".join(["| metric | value | wanted | ok |", "|---|---|---|---|", *lines])


class Live:
    """A bar where there is a terminal, otherwise a plain line now and then."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        bar = self._console.is_terminal
        columns = (BarColumn(24), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
        self._progress = Progress(
            TextColumn("{task.description}"),
            *columns,
            console=self._console,
            transient=True,
            disable=not bar,
        )
        self._said = 0.0

    @contextmanager
    def shown(self) -> Iterator[Live]:
        """While the block lasts."""
        with self._progress:
            yield self

    def begin(self, name: str, total: float) -> None:
        """Another part of the soak, in whatever unit."""
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._progress.add_task(name, total=total, note="")
        self._said = 0.0

    def at(self, done: float, note: str = "") -> None:
        """So much of it is done."""
        (task,) = self._progress.tasks
        self._progress.update(task.id, completed=done, note=note)
        if not self._console.is_terminal and time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            self._console.print(
                f"{task.description}: {done:.0f}/{task.total:.0f} {note}",
                markup=False,
                highlight=False,
            )

"""A load test from the first phase to the last; its results are kept even if it fails.

Owns the order of the phases; knows no options and writes only the record file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console

from radixserve.loadtest.about import About, about, described
from radixserve.loadtest.check import Difference, check, comparable
from radixserve.loadtest.measures import Objective, summarise
from radixserve.loadtest.progress import Live
from radixserve.loadtest.record import Record, RecordFile
from radixserve.loadtest.replay import Run, Sent, replay
from radixserve.loadtest.results import Phase
from radixserve.loadtest.scrape import Sample, scraping
from radixserve.loadtest.target import Target
from radixserve.loadtest.workload import Workload


@dataclass(slots=True)
class Bench:
    """A load test in progress: its target, its options and its results so far."""

    target: Target
    file: RecordFile
    console: Console
    objective: Objective | None = None
    quiet: bool = False
    command: Sequence[str] = ()  # the command line
    baseline: str | None = None  # the phase that others are compared with; None: the first
    phases_are: str = ""  # what differs between the phases, for the report
    about: About | None = None  # None before the first phase
    phases: list[Phase] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    lost: str = ""  # why the test ended before its last phase

    async def run(self, workload: Workload, phase: str) -> None:
        """Replay a workload as one phase. Raises CannotStart; after any other failure the phase is
        kept.
        """
        run, samples = Run(workload, phase), list[Sample]()
        if self.about is None:
            told = await described(self.target)
            self.about = dataclasses.replace(
                about(self.target, self.command), phases=self.phases_are, **told
            )
        try:
            with Live(self.console, quiet=self.quiet) as live:
                follow = live.follow(run)

                def on_record(record: Record) -> None:
                    self.file.write(record)
                    follow.take(record)

                async with scraping(self.target, samples):
                    await replay(run, self.target, on_record)
        finally:
            self.about = dataclasses.replace(self.about, model=run.model)
            if run.wall_seconds or run.sent:
                self.phases.append(Phase(run, summarise(run, self.objective), samples))

    async def check(self) -> None:
        """Send every greedy request again, alone. Raises CannotStart; differences found until then
        are kept.
        """
        runs = [phase.run for phase in self.phases]
        with Live(self.console, quiet=self.quiet) as live:
            task = live.checks(len(comparable(runs)))

            def on_checked(sent: Sent, reason: str | None) -> None:
                live.advance(task, "check")
                if reason:
                    self.differences.append(Difference(sent, reason))

            await check(runs, self.target, on_checked)

    @property
    def failed(self) -> bool:
        """Whether the measurements show any error."""
        wrong = any(phase.summary.errors or phase.run.server_lost for phase in self.phases)
        return bool(wrong or self.differences or self.file.error or self.lost or not self.phases)

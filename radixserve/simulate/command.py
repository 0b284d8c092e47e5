"""`radixserve cache simulate`: hit rates of policies over budgets, as tables and as a picture."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from radixserve.cache.policies.table import POLICIES
from radixserve.loadtest import trace
from radixserve.loadtest.session import WorkloadError
from radixserve.simulate.chart import Chart
from radixserve.simulate.minimum import minimum
from radixserve.simulate.replay import EVEN_DEPTH, Outcome, Traffic, replay

CLAIRVOYANT = "min"
_NUM_BUDGETS = 8
_EVERY = 200  # prompts, between two movements of the progress bar


@dataclass(frozen=True, slots=True)
class Results:
    """The outcomes of each policy, in the order of the budgets."""

    budgets: Sequence[int]
    outcomes: dict[str, list[Outcome]]


def main(file: Path, policies: Sequence[str], budgets: Sequence[int], svg: Path | None) -> int:
    """Simulate and print; 2 if the trace cannot be used or the picture cannot be written. Without
    `budgets` there are eight.
    """
    try:
        traffic = Traffic.of(trace.read(file))
        sizes = sorted(set(budgets or default_budgets(traffic.num_distinct)))
        names = list(POLICIES) if "all" in policies else list(dict.fromkeys(policies))
        results = simulate(traffic, names, sizes)
        if svg is not None:
            svg.write_text(draw(traffic, results, file.name))
    except (WorkloadError, ValueError, OSError) as error:
        print(f"radixserve cache simulate: {error}", file=sys.stderr)
        return 2
    show(traffic, results, Console())
    return 0


def default_budgets(num_distinct: int) -> list[int]:
    """Budgets from a hundred-and-twenty-eighth of the trace's blocks to all of them, each twice
    the one before.
    """
    return [max(num_distinct >> shift, 1) for shift in range(_NUM_BUDGETS - 1, -1, -1)]


def simulate(traffic: Traffic, names: Sequence[str], budgets: Sequence[int]) -> Results:
    """Every policy of `names`, and the clairvoyant one, with every budget. Progress is shown on
    stderr.
    """
    total = len(traffic.prompts) * len(budgets) * (len(names) + 1)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        outcomes = {
            name: [
                _run(traffic, name, budget, _Steps(progress, task, f"{name} {budget:,}"))
                for budget in budgets
            ]
            for name in (*names, CLAIRVOYANT)
        }
    return Results(budgets, outcomes)


def _run(traffic: Traffic, name: str, budget: int, step: Callable[[], None]) -> Outcome:
    if name == CLAIRVOYANT:
        return minimum(traffic, budget, step)
    return replay(traffic, name, budget, step)


class _Steps:
    """Moves a progress bar, now and then."""

    def __init__(self, progress: Progress, task: TaskID, label: str) -> None:
        self._progress, self._task, self._count = progress, task, 0
        progress.update(task, description=label)

    def __call__(self) -> None:
        self._count += 1
        if self._count % _EVERY == 0:
            self._progress.advance(self._task, _EVERY)


def show(traffic: Traffic, results: Results, console: Console) -> None:
    """Print what was simulated, and two tables."""
    console.print(
        f"{len(traffic.prompts):,} requests with {traffic.num_blocks:,} blocks of "
        f"{traffic.block_tokens} tokens, {traffic.num_distinct:,} of them distinct",
        highlight=False,
    )
    shares: dict[str, Callable[[Outcome], float]] = {
        "blocks that hit": lambda each: each.hits,
        f"computing saved (a token at {EVEN_DEPTH:,} costs twice the first)": lambda each: (
            each.saved
        ),
    }
    for title, share in shares.items():
        table = Table(box=None, header_style="bold")
        table.add_column("policy, blocks in the cache:")
        for budget in results.budgets:
            table.add_column(f"{budget:,}", justify="right")
        for name, outcomes in results.outcomes.items():
            table.add_row(name, *(f"{100 * share(each):.1f} %" for each in outcomes))
        console.print(f"\n{title}:", highlight=False)
        console.print(table)


def draw(traffic: Traffic, results: Results, name: str) -> str:
    """The hit rates as an SVG document."""
    return Chart(
        title=f"Blocks that hit: {name}",
        x_label=f"size of the cache, in blocks of {traffic.block_tokens} tokens",
        budgets=results.budgets,
        lines={
            policy: [each.hits for each in outcomes]
            for policy, outcomes in results.outcomes.items()
        },
        limit=CLAIRVOYANT,
    ).svg()

"""`radixserve cluster simulate`: policies over numbers of servers, as a table and as a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from radixserve.cluster.policy import POLICIES, LeastCost, LeastLoaded, Policy
from radixserve.cluster.simulation import Cluster, Outcome, copies, simulate, spread
from radixserve.loadtest import trace
from radixserve.loadtest.session import WorkloadError
from radixserve.loadtest.trace import Line
from radixserve.simulate.chart import Chart

POOLED = "one cache"
"""The row of a single server with the memory and the speed of all: no placement can hit more."""

_EVERY = 500  # requests, between two movements of the progress bar


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is simulated: each policy with each number of servers."""

    servers: Sequence[int]
    policies: Sequence[str]
    cluster: Cluster  # whose number of servers is replaced
    alpha: float
    per_copy: int  # servers for which the trace is taken once; twice for twice as many

    @classmethod
    def of(cls, given: argparse.Namespace) -> Wanted:
        """What the command line says; see `arguments`."""
        cluster = Cluster(1, given.blocks, given.speed, given.gateways, given.delay)
        servers = sorted(set(given.servers))
        return cls(servers, given.policy, cluster, given.alpha, given.servers_per_copy)

    def runs(self) -> list[tuple[str, int]]:
        """Each name and number of servers."""
        names = [POOLED, *(POLICIES if "all" in self.policies else self.policies)]
        return [(name, count) for name in dict.fromkeys(names) for count in self.servers]


def main(file: Path, wanted: Wanted, svg: Path | None) -> int:
    """Simulate and print; 2 if the trace cannot be used or the picture cannot be written."""
    try:
        lines = spread(trace.read(file))
        if not lines:
            raise WorkloadError(f"{file}: no requests")
        outcomes = run(lines, wanted)
        if svg is not None:
            svg.write_text(draw(outcomes, wanted, file.name))
    except (WorkloadError, OSError) as error:
        print(f"radixserve cluster simulate: {error}", file=sys.stderr)
        return 2
    show(outcomes, wanted, Console())
    return 0


def run(lines: Sequence[Line], wanted: Wanted) -> dict[tuple[str, int], Outcome]:
    """The outcome of each run. Progress is shown on stderr."""
    times = {count: max(count // wanted.per_copy, 1) for count in wanted.servers}
    total = sum(times[count] * len(lines) for _, count in wanted.runs())
    traffic: dict[int, list[Line]] = {}  # by copies; the same for all policies
    outcomes = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        for name, count in wanted.runs():
            progress.update(task, description=f"{name} {count:,}")
            if times[count] not in traffic:
                traffic[times[count]] = copies(lines, times[count])
            every = _Every(partial(progress.advance, task, _EVERY))
            outcomes[name, count] = _run(traffic[times[count]], wanted, name, count, every)
    return outcomes


def _run(
    lines: Sequence[Line], wanted: Wanted, name: str, count: int, step: Callable[[], None]
) -> Outcome:
    cluster = replace(wanted.cluster, servers=count)
    if name == POOLED:
        speed = count * cluster.tokens_per_second
        pooled = Cluster(1, count * cluster.blocks, speed)
        return simulate(lines, pooled, LeastLoaded, step)
    make: Callable[[], Policy] = POLICIES[name]
    if name == "cost":
        make = partial(LeastCost, wanted.alpha)
    return simulate(lines, cluster, make, step)


class _Every:
    """Calls a function for each `_EVERY` calls."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then, self._count = then, 0

    def __call__(self) -> None:
        self._count += 1
        if self._count % _EVERY == 0:
            self._then()


def show(outcomes: dict[tuple[str, int], Outcome], wanted: Wanted, console: Console) -> None:
    """Print a table for each number of servers."""
    for count in wanted.servers:
        of_count = {name: each for (name, other), each in outcomes.items() if other == count}
        first = next(iter(of_count.values()))
        console.print(
            f"\n{len(first.seconds):,} requests, {count} servers of {wanted.cluster.blocks:,} "
            f"blocks, {wanted.cluster.gateways} gateways",
            highlight=False,
        )
        console.print(_table(of_count))


def _table(outcomes: dict[str, Outcome]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("policy")
    for head in ("hit tokens", "of the limit", "TTFT mean", "p50", "p99", "busiest / mean"):
        table.add_column(head, justify="right")
    whole = outcomes[POOLED].hits
    for name, each in outcomes.items():
        ranked = sorted(each.seconds)
        times = (sum(ranked) / len(ranked), ranked[len(ranked) // 2], ranked[_p99(ranked)])
        table.add_row(
            name,
            f"{100 * each.hits:.1f} %",
            f"{each.hits / whole:.3f}" if whole else "",
            *(f"{seconds:,.2f} s" for seconds in times),
            f"{each.imbalance:.2f}",
        )
    return table


def _p99(ranked: Sequence[float]) -> int:
    return min(int(0.99 * len(ranked)), len(ranked) - 1)


def draw(outcomes: dict[tuple[str, int], Outcome], wanted: Wanted, name: str) -> str:
    """The shares of hits over the numbers of servers, as an SVG document."""
    names: Iterable[str] = dict.fromkeys(each for each, _ in outcomes)
    return Chart(
        title=f"Prompt tokens that hit: {name}",
        x_label=f"servers of {wanted.cluster.blocks:,} blocks",
        budgets=wanted.servers,
        lines={each: [outcomes[each, count].hits for count in wanted.servers] for each in names},
        limit=POOLED,
    ).svg()

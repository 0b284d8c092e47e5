"""The declaration of a metric, and the table in which numbers travel from their owners to the
metrics page.

Whoever counts something declares it once, in a module `counters` beside it: name, unit, help,
labels. It reports `Numbers` under the keys of its declarations. The page and docs/metrics.md show
whatever is declared (`metrics_table`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

SECONDS: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)  # fmt: skip
"""Buckets of a histogram of durations."""
TOKENS: Final = (0.0, *(float(1 << n) for n in range(18)))
"""Buckets of a histogram of token counts."""

Key = tuple[str, ...]
"""A metric's name and the values of its labels, in their order."""

Numbers = dict[Key, float]
"""Gauges and running totals of a moment. Totals start at 0 with each process and never decrease."""


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric as docs/metrics.md shows it. `unit` is what a value counts; `values` are those
    that each label can have, in the order of `labels`. Without them the series are not known
    before they are reported; whoever reports them bounds their number.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = SECONDS
    values: tuple[tuple[str, ...], ...] = ()

    def series(self) -> Iterator[tuple[str, ...]]:
        """The label values of every series that is known: one without labels has one."""
        return product(*self.values) if self.values or not self.labels else iter(())

    def key(self, *labels: str) -> Key:
        """The key of one series in `Numbers`."""
        assert len(labels) == len(self.labels), f"{self.name} has the labels {self.labels}"
        return (self.name, *labels)

"""Compares two summaries: ratios with confidence intervals, by resampling the measurements.

Times are resampled by request, throughput by slices of the run. An interval that contains 1 shows
no difference. It does not include differences between runs of the same server, so compare runs that
took turns.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from radixserve.loadtest.headline import first_token, is_same, throughput
from radixserve.loadtest.results import FORMAT
from radixserve.loadtest.session import WorkloadError

RESAMPLES, PART = 2000, 100
SLICES = 20  # of a run, for throughput
LEVEL = (2.5, 97.5)

Values = NDArray[np.float64]
Statistic = Callable[[Values], Values]  # a statistic over the last axis


def main(arguments: Sequence[str], prog: str, console: Console) -> int:
    """Print a table for each phase that both files have; FILE:PHASE selects one."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("a", metavar="A.json", help="what --summary wrote, FILE or FILE:PHASE")
    parser.add_argument("b", metavar="B.json")
    chosen = parser.parse_args(arguments)
    for name, a, b in _pairs(_phases(chosen.a), _phases(chosen.b)):
        console.print(f"[bold]{escape(sentence(name, a, b))}[/]")
        console.print(table(name, a, b))
    return 0


def _phases(text: str) -> dict[str, Any]:
    """The phases of a summary file. Raises WorkloadError if it is none."""
    path, _, phase = (text, "", "") if Path(text).exists() else text.rpartition(":")
    try:
        values = json.loads(Path(path or text).read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise WorkloadError(f"{path}: its format is {values['format']}, not {FORMAT}")
        phases: dict[str, Any] = values["phases"]
    except OSError as error:
        raise WorkloadError(f"cannot read {path or text}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise WorkloadError(f"{path} is not what --summary writes") from error
    if not phase:
        return phases
    if phase not in phases:
        raise WorkloadError(f"{path} has no phase {phase}; it has: {', '.join(phases)}")
    return {phase: phases[phase]}


def _pairs(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    if len(a) == len(b) == 1:
        ((one, first),), ((other, second),) = a.items(), b.items()
        return [(one if one == other else f"{one} / {other}", first, second)]
    shared = [name for name in a if name in b]
    if not shared:
        raise WorkloadError(
            f"no phase in common: {', '.join(a)} and {', '.join(b)}; name one with FILE:PHASE"
        )
    return [(name, a[name], b[name]) for name in shared]


def table(name: str, a: Any, b: Any) -> Table:
    """A row for each measure: A, B, A / B and its interval."""
    made = Table(
        "", "A", "B", "A / B", "95 % interval", title=f"{name}: A / B", title_justify="left"
    )
    for row in rows(a, b):
        made.add_row(*row)
    for label, key in (("hit share", "hit_share"), ("answered", "answered")):
        values = [phase["summary"][key] for phase in (a, b)]
        made.add_row(label, *("-" if value is None else f"{value:.4g}" for value in values), "", "")
    return made


def sentence(name: str, a: Any, b: Any) -> str:
    """A sentence with the two most important ratios, or that these runs show no difference."""
    pairs = (
        (_rates(a, None), _rates(b, None), _mean, throughput, "throughput"),
        (_times(b, "ttft"), _times(a, "ttft"), _percentile(50), first_token, "the first token"),
    )
    parts = []
    for one, other, statistic, words, measure in pairs:
        if one.size and other.size and statistic(one) > 0 and statistic(other) > 0:
            low, high = interval(one, other, statistic)
            ratio = float(statistic(one) / statistic(other))
            none = low <= 1 <= high or is_same(ratio)
            parts.append(f"no difference in {measure}" if none else words(ratio))
    return f"{name}, A against B: {', '.join(parts) or 'nothing that can be compared'}"


def rows(a: Any, b: Any) -> Iterator[tuple[str, ...]]:
    """The rows of measures that can be resampled."""
    yield from _row("requests/s", _rates(a, None), _rates(b, None), _mean)
    yield from _row("tokens/s", _rates(a, 1), _rates(b, 1), _mean)
    for key, label in (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2e", "end to end")):
        one, other = _times(a, key), _times(b, key)
        for share in (50, 90, 99):
            yield from _row(f"{label} p{share}, s", one, other, _percentile(share))


def _times(phase: Any, key: str) -> Values:
    """One of the times of each answer, in seconds."""
    return np.asarray(phase["values"][key], dtype=float)


def _row(label: str, one: Values, other: Values, statistic: Statistic) -> Iterator[tuple[str, ...]]:
    """A row of the table; nothing if a sample is empty."""
    if one.size and other.size and statistic(other) > 0:
        values = [float(statistic(sample)) for sample in (one, other)]
        low, high = interval(one, other, statistic)
        ratio = values[0] / values[1]
        yield (
            label,
            *(f"{value:.4g}" for value in values),
            f"{ratio:.2f}",
            f"{low:.2f} .. {high:.2f}",
        )


def interval(a: Values, b: Values, statistic: Statistic) -> tuple[float, float]:
    """The interval that contains 95 % of the ratios when both samples are resampled;
    deterministic.
    """
    rng = np.random.default_rng(0)
    ratios = [  # in parts, to save memory
        statistic(rng.choice(a, (PART, a.size)))
        / np.maximum(statistic(rng.choice(b, (PART, b.size))), 1e-12)
        for _ in range(RESAMPLES // PART)
    ]
    low, high = np.percentile(ratios, LEVEL)
    return float(low), float(high)


def _mean(values: Values) -> Values:
    return np.asarray(values.mean(axis=-1))


def _percentile(share: int) -> Statistic:
    return lambda values: np.asarray(np.percentile(values, share, axis=-1))


def _rates(phase: Any, key: int | None) -> Values:
    """Answers per second in each slice of the run, by the time they ended; with `key`, the sum of
    that column (such as tokens) per second.
    """
    wall = phase["summary"]["wall_seconds"]
    ends = np.asarray(phase["ends"], dtype=float).reshape(-1, 2)
    if not ends.size or not wall:
        return np.zeros(0)
    sums, _ = np.histogram(
        ends[:, 0], SLICES, (0, wall), weights=None if key is None else ends[:, key]
    )
    return np.asarray(sums / (wall / SLICES), dtype=float)

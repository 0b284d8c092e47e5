"""The report in the terminal: the table at the end, and a line for each problem."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from radixserve.loadtest.check import Difference
from radixserve.loadtest.measures import Latency, Objective, Quantiles, Summary
from radixserve.loadtest.replay import Run


def table_of(
    summaries: dict[str, Summary], title: str, objective: Objective | None = None
) -> Table:
    """The table of results, with a column for each phase."""
    table = Table(title=title, title_justify="left", show_header=len(summaries) > 1)
    table.add_column(style="bold")
    for phase in summaries:
        table.add_column(phase)
    columns = [dict(_lines(summary, objective)) for summary in summaries.values()]
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "") for column in columns))
    return table


def _lines(s: Summary, objective: Objective | None) -> Iterator[tuple[str, str]]:
    others = ((s.refused, "refused as expected"), (s.left, "left early"), (s.slow, "read slowly"))
    yield (
        "requests",
        ", ".join(
            [f"{s.requests} sent: {s.answered} answered", *(f"{n} {how}" for n, how in others if n)]
        ),
    )
    if s.unsent:
        yield "not sent", str(s.unsent)
    yield "wall time", f"{s.wall_seconds:.2f} s"
    yield "requests/s", f"{s.requests_per_second:.2f}"
    yield "tokens/s", f"{s.tokens_per_second:.1f}"
    if s.good_per_second is not None:
        yield (
            "goodput, requests/s",
            f"{s.good_per_second:.2f} ({s.good_share or 0:.0%} of requests)",
        )
        yield "goodput keeps", str(objective)
    yield "prompt tokens", f"{s.prompt_tokens:,}"
    yield "hit share", "not reported" if s.hit_share is None else f"{s.hit_share:.3f}"
    yield "", "p50 / p90 / p99"
    for name, latency in (
        ("", s.latency),
        *((f" of {kind}", latency) for kind, latency in s.by_kind.items()),
    ):
        yield from _times(name, latency, brief=bool(name))
    yield "errors", ", ".join(f"{count} x {kind}" for kind, count in s.errors.items()) or "none"


def _times(of: str, latency: Latency, *, brief: bool) -> Iterator[tuple[str, str]]:
    """A line for each measured time; with `brief` only the first."""
    named = [
        ("TTFT", latency.ttft),
        ("TPOT", latency.tpot),
        ("between pieces", latency.inter_token),
    ]
    for name, measured in named[:1] if brief else [*named, ("end to end", latency.e2e)]:
        if measured:
            yield name + of, _quantiles(measured)


def _quantiles(measured: Quantiles) -> str:
    """The quantiles as text, in one unit."""
    values = (measured.p50, measured.p90, measured.p99)
    factor, unit = (1.0, "s") if measured.p99 >= 1 else (1e3, "ms")
    return " / ".join(f"{value * factor:.3g}" for value in values) + f" {unit}"


def seconds(value: float) -> str:
    """A time as text, in a readable unit."""
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"


def problems(run: Run, summary: Summary) -> Iterator[str]:
    """The problems of a run, one line for each kind, with the server's message for the first of the
    kind.
    """
    shown: set[str] = set()
    for record in run.records:
        if record.error and record.detail and record.error not in shown:
            shown.add(record.error)
            yield f"{record.error}, first at {record.session}: {record.detail}"
    if run.server_lost:
        yield f"the server stopped taking connections; {summary.unsent} requests were not sent"


def notes(runs: Sequence[Run], differences: Sequence[Difference]) -> Iterator[str]:
    """Remarks that a reader of the numbers needs."""
    left_out = sum((run.left_out for run in runs), start=type(runs[0].left_out)()) if runs else {}
    if left_out:
        names = ", ".join(f"{name} ({count} x)" for name, count in sorted(left_out.items()))
        yield f"left out of requests, for this dialect: {names}"
    for difference in differences:
        record = difference.sent.record
        yield f"differs: {record.session}, turn {record.turn} ({record.kind}): {difference.reason}"

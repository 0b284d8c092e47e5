"""Numbers from records, and the table at the end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from loadtest.replay import Run


@dataclass(frozen=True, slots=True)
class Quantiles:
    """In seconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers. Throughput counts complete answers; `hit_share` is None if the server does not report it."""

    requests: int  # sent
    unsent: int
    answered: int
    refused: int  # as expected
    left: int
    errors: dict[str, int]  # by kind
    wall_seconds: float
    requests_per_second: float
    tokens_per_second: float
    prompt_tokens: int
    cached_tokens: int
    hit_share: float | None
    ttft: Quantiles | None
    inter_token: Quantiles | None
    e2e: Quantiles | None


def summarise(run: Run) -> Summary:
    """Count and measure what `run` recorded."""
    records = run.records
    answered = [record for record in records if record.answered]
    streamed = [record for record in answered if record.ttft is not None]
    reported = [record for record in answered if record.cached_tokens is not None]
    prompt_tokens = sum(record.prompt_tokens for record in reported)
    cached_tokens = sum(record.cached_tokens or 0 for record in reported)
    wall = max(run.wall_seconds, 1e-9)
    return Summary(
        requests=len(records),
        unsent=run.workload.num_requests - len(records),
        answered=len(answered),
        refused=sum(record.error is None and not record.left for record in records) - len(answered),
        left=sum(record.left for record in records),
        errors=dict(Counter(record.error for record in records if record.error).most_common()),
        wall_seconds=run.wall_seconds,
        requests_per_second=len(answered) / wall,
        tokens_per_second=sum(record.completion_tokens for record in answered) / wall,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        hit_share=cached_tokens / prompt_tokens if prompt_tokens else None,
        ttft=quantiles(record.ttft for record in streamed if record.ttft is not None),
        inter_token=quantiles(gap for record in streamed for gap in record.inter_token),
        e2e=quantiles(record.e2e for record in answered),
    )


def quantiles(values: Iterable[float]) -> Quantiles | None:
    """By nearest rank: each is one of the values. None without values."""
    ordered = sorted(values)
    return Quantiles(*(_at(ordered, share) for share in (0.5, 0.9, 0.99))) if ordered else None


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def table_of(summary: Summary, title: str) -> Table:
    """The table printed at the end of a run."""
    table = Table(title=title, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _lines(summary):
        table.add_row(name, value)
    return table


def _lines(s: Summary) -> Iterable[tuple[str, str]]:
    yield "requests", f"{s.requests} sent: {s.answered} answered, {s.refused} refused as expected, {s.left} left early"
    if s.unsent:
        yield "not sent", str(s.unsent)
    yield "wall time", f"{s.wall_seconds:.2f} s"
    yield "throughput", f"{s.requests_per_second:.2f} requests/s, {s.tokens_per_second:.1f} tokens/s"
    yield "prompt tokens", f"{s.prompt_tokens:,} of which cached {s.cached_tokens:,}"
    yield "hit share", "not reported" if s.hit_share is None else f"{s.hit_share:.3f}"
    for name, measured in (("TTFT", s.ttft), ("between pieces", s.inter_token), ("end to end", s.e2e)):
        if measured:
            yield f"{name} p50 / p90 / p99", " / ".join(map(_seconds, (measured.p50, measured.p90, measured.p99)))
    yield "errors", ", ".join(f"{count} x {kind}" for kind, count in s.errors.items()) or "none"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"

"""Computes statistics from records. Pure: no terminal, no files, no clock.

Latencies include only complete answers to clients that read at full speed; counts include all
requests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from radixserve.loadtest.record import Record
from radixserve.loadtest.replay import Run


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles of a time, in seconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Objective:
    """The limits of a good answer, in seconds; None: no limit."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def met_by(self, record: Record) -> bool:
        """Whether the record keeps all limits. A time that does not exist, such as the TPOT of one
        token, keeps every limit; so do times of slow readers.
        """
        pairs = ((record.ttft, self.ttft), (record.tpot, self.tpot), (record.e2e, self.e2e))
        kept = record.slow or all(
            limit is None or time is None or time <= limit for time, limit in pairs
        )
        return record.answered and kept

    def __str__(self) -> str:
        limits = {"TTFT": self.ttft, "TPOT": self.tpot, "end to end": self.e2e}
        return ", ".join(
            f"{name} {limit:g} s" for name, limit in limits.items() if limit is not None
        )


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies of answers. None if not measured, as without streaming."""

    answers: int
    ttft: Quantiles | None
    tpot: Quantiles | None
    inter_token: Quantiles | None
    e2e: Quantiles | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The statistics of a run. Throughput counts complete answers; `hit_share` is None if the
    server does not report it.
    """

    requests: int  # sent
    unsent: int
    answered: int
    refused: int  # as expected
    left: int
    slow: int
    errors: dict[str, int]  # by kind
    wall_seconds: float
    requests_per_second: float
    tokens_per_second: float
    good_per_second: float | None  # answers that kept the objective; None without one
    good_share: float | None  # share of all requests that should have been answered
    prompt_tokens: int  # of complete answers
    cached_tokens: int
    hit_share: float | None
    latency: Latency
    by_kind: dict[str, Latency] = field(default_factory=dict)  # only if there are several


def summarise(run: Run, objective: Objective | None = None) -> Summary:
    """Count and measure what `run` recorded."""
    records = run.records
    answered = [record for record in records if record.answered]
    reported = [record for record in answered if record.cached_tokens is not None]
    asked_tokens = sum(record.prompt_tokens for record in reported)
    cached_tokens = sum(record.cached_tokens or 0 for record in reported)
    wall = max(run.wall_seconds, 1e-9)
    good = sum(objective.met_by(record) for record in answered) if objective else None
    wanted = len(answered) + sum(record.error is not None for record in records)
    kinds = dict.fromkeys(record.kind for record in answered)
    return Summary(
        requests=len(records),
        unsent=run.workload.num_requests - len(records),
        answered=len(answered),
        refused=sum(record.error is None and not record.left for record in records) - len(answered),
        left=sum(record.left for record in records),
        slow=sum(record.slow for record in records),
        errors=dict(Counter(record.error for record in records if record.error).most_common()),
        wall_seconds=run.wall_seconds,
        requests_per_second=len(answered) / wall,
        tokens_per_second=sum(record.completion_tokens for record in answered) / wall,
        good_per_second=None if good is None else good / wall,
        good_share=None if good is None or not wanted else good / wanted,
        prompt_tokens=sum(record.prompt_tokens for record in answered),
        cached_tokens=cached_tokens,
        hit_share=cached_tokens / asked_tokens if asked_tokens else None,
        latency=latency(answered),
        by_kind={kind: latency([r for r in answered if r.kind == kind]) for kind in kinds}
        if len(kinds) > 1
        else {},
    )


def latency(answered: Sequence[Record]) -> Latency:
    """Quantiles over complete answers, those of slow readers left out."""
    timed = [record for record in answered if not record.slow]
    return Latency(
        answers=len(timed),
        ttft=quantiles(record.ttft for record in timed if record.ttft is not None),
        tpot=quantiles(record.tpot for record in timed if record.tpot is not None),
        inter_token=quantiles(gap for record in timed for gap in record.inter_token),
        e2e=quantiles(record.e2e for record in timed),
    )


def quantiles(values: Iterable[float]) -> Quantiles | None:
    """By nearest rank: each is one of the values. None without values."""
    ordered = sorted(values)
    return Quantiles(*(_at(ordered, share) for share in (0.5, 0.9, 0.99))) if ordered else None


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]

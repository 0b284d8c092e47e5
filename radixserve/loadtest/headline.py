"""The result of a load test in one or two sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from radixserve.loadtest.measures import Summary

SAME = 1.05  # ratios up to this one, and down to its inverse, are called the same


def headline(summaries: Mapping[str, Summary], baseline: str | None = None) -> Iterator[str]:
    """A sentence that compares each phase with `baseline` (by default the first), the largest
    difference first. A run of one phase is described by its own numbers.
    """
    whole = {name: each for name, each in summaries.items() if each.answered and each.unsent < 1}
    base = baseline if baseline is not None else next(iter(summaries), None)
    others = [name for name in whole if name != base]
    if base in whole and others:
        others.sort(key=lambda name: -whole[name].requests_per_second)
        for name in others:
            yield f"{name} against {base}: {compared(whole[name], whole[base])}"
    else:
        yield from (f"{name}: {alone(each)}" for name, each in whole.items())


def compared(one: Summary, other: Summary) -> str:
    """`12x the throughput, first token 60x sooner`."""
    parts = [throughput(one.requests_per_second / other.requests_per_second)]
    first, others_first = one.latency.ttft, other.latency.ttft
    if first is not None and others_first is not None and first.p50 > 0:
        parts.append(first_token(others_first.p50 / first.p50))
    return ", ".join(parts)


def throughput(ratio: float) -> str:
    """Requests per second, as a ratio."""
    return "the same throughput" if is_same(ratio) else f"{times(ratio)} the throughput"


def first_token(ratio: float) -> str:
    """The median time to the first token, as a ratio of speeds."""
    if is_same(ratio):
        return "first token as soon"
    return (
        f"first token {times(ratio)} sooner"
        if ratio > 1
        else f"first token {times(1 / ratio)} later"
    )


def is_same(ratio: float) -> bool:
    """Whether `ratio` is too close to 1 to be reported."""
    return 1 / SAME <= ratio <= SAME


def times(ratio: float) -> str:
    """`12x`, `2.4x`, `0.31x`: two digits."""
    return f"{ratio:.0f}x" if ratio >= 9.95 else f"{ratio:.2g}x"


def alone(summary: Summary) -> str:
    """A sentence with the numbers of one phase."""
    parts = [
        f"{summary.answered} of {summary.requests} requests answered",
        f"{summary.requests_per_second:.3g} a second",
    ]
    if summary.latency.ttft is not None:
        parts.append(f"first token after {_seconds(summary.latency.ttft.p50)} (median)")
    if summary.hit_share is not None:
        parts.append(f"{summary.hit_share:.0%} of the prompts' tokens from the cache")
    return ", ".join(parts)


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"

"""The metrics of /metrics as values of OpenTelemetry, so that both say the same."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from radixserve import __version__
from radixserve.metrics_table import METRICS

_UNITS: Final = {"seconds": "s", "bytes": "By", "ratio": "1", "0 or 1": "1", "always 1": "1"}
_UNIT_OF: Final = {each.name.removesuffix("_total"): each.unit for each in METRICS}

_Labels = tuple[tuple[str, str], ...]


def metrics_data(
    registry: Collector, resource: Resource, started_ns: int, now_ns: int
) -> MetricsData:
    """Every metric of `registry` with its value now; counters began at `started_ns`. Takes about
    as long as rendering the page.

    A counter has its name without `_total`, which a collector adds again when Prometheus reads
    from it.
    """
    metrics = [
        _metric(family, started_ns, now_ns) for family in registry.collect() if family.samples
    ]
    scope = ScopeMetrics(InstrumentationScope("radixserve", __version__), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], resource.schema_url)])


def _metric(family: Family, started_ns: int, now_ns: int) -> Metric:
    unit = _UNIT_OF.get(family.name, "")
    unit = _UNITS.get(unit, f"{{{unit}}}" if unit else "")
    return Metric(family.name, family.documentation, unit, _data(family, started_ns, now_ns))


def _data(family: Family, started_ns: int, now_ns: int) -> Sum | Gauge | Histogram:
    if family.type == "histogram":
        points = [_histogram(*each, started_ns, now_ns) for each in _grouped(family.samples)]
        return Histogram(points, AggregationTemporality.CUMULATIVE)
    numbers = [
        NumberDataPoint(dict(each.labels), started_ns, now_ns, each.value)
        for each in family.samples
        if not math.isnan(each.value)
    ]
    if family.type == "counter":
        return Sum(numbers, AggregationTemporality.CUMULATIVE, is_monotonic=True)
    return Gauge(numbers)


def _grouped(samples: list[Sample]) -> Iterator[tuple[_Labels, list[Sample]]]:
    """The samples of one histogram apart from those with other labels."""
    groups: dict[_Labels, list[Sample]] = defaultdict(list)
    for sample in samples:
        labels = tuple((name, text) for name, text in sample.labels.items() if name != "le")
        groups[labels].append(sample)
    yield from groups.items()


def _histogram(
    labels: _Labels, samples: list[Sample], started_ns: int, now_ns: int
) -> HistogramDataPoint:
    """Prometheus counts what lies at or below each bound, OpenTelemetry what lies between two."""
    buckets = [each for each in samples if each.name.endswith("_bucket")]
    bounds = [float(each.labels["le"]) for each in buckets]
    below = [int(each.value) for each in buckets]
    total = next(each.value for each in samples if each.name.endswith("_sum"))
    unknown: Any = None  # the smallest and largest value, which are optional on the wire
    return HistogramDataPoint(
        attributes=dict(labels),
        start_time_unix_nano=started_ns,
        time_unix_nano=now_ns,
        count=below[-1],
        sum=total,
        bucket_counts=[this - before for before, this in zip([0, *below], below, strict=False)],
        explicit_bounds=bounds[:-1],
        min=unknown,
        max=unknown,
    )

"""The metrics of several models on one page, where the name of its model is a label of each number.

With one model the page is that of its `Metrics`, without the label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from radixserve.metrics import Metrics
from radixserve.step import EngineInfo

_OF_THE_SERVER = ("process_", "radixserve_build_info")  # the same for every model


class Together(Collector):
    """Metrics of several collectors, each with labels for its own."""

    def __init__(self, collectors: Sequence[tuple[Collector, Mapping[str, str]]]) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Metric]:
        """One metric of each name, with the samples of all collectors."""
        found: dict[str, Metric] = {}
        for collector, labels in self._collectors:
            for metric in collector.collect():
                if not metric.name.startswith(_OF_THE_SERVER):
                    metric.samples = [_labelled(each, labels) for each in metric.samples]
                elif metric.name in found:
                    continue
                same = found.setdefault(metric.name, metric)
                if same is not metric:
                    same.samples += metric.samples
        yield from found.values()


def _labelled(sample: Sample, labels: Mapping[str, str]) -> Sample:
    return sample._replace(labels={**labels, **sample.labels})


def collector(models: Sequence[Metrics]) -> Collector:
    """The metrics of one model, or of several by the label `model`."""
    if len(models) == 1:
        return models[0].registry
    return Together([(each.registry, {"model": each.model}) for each in models])


def page(models: Sequence[tuple[Metrics, EngineInfo | None]]) -> bytes:
    """The page of one model or more, with their newest `take_state` and their engines' facts."""
    names = Together([(each, {}) for one, info in models for each in one.other_names(info)])
    return generate_latest(collector([one for one, _ in models])) + generate_latest(names)

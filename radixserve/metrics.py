"""Counts requests and steps and renders the Prometheus page; the metrics are declared in
`metrics_table`.

The front records each request when it ends, passes on each report of the engine, and renders the
page. It receives plain values only, and knows no HTTP, no engine process and no tensors. Used from
the event loop's thread.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from radixserve import __version__
from radixserve.cache.counters import KV_BYTES
from radixserve.declared import Declared, Numbers
from radixserve.engine.counters import COMPUTED, PROMPT_TOKENS, STEPS
from radixserve.errors import CODES
from radixserve.metrics_aliases import VllmNames
from radixserve.metrics_table import (
    COLD,
    ENGINE,
    METRICS,
    OTHER_CODE,
    WARM,
    WARMING,
    WINDOW_SECONDS,
)
from radixserve.step import EngineInfo, EngineStats


@dataclass(slots=True)
class RequestRecord:
    """The outcome of one request. Times of events that did not happen are None."""

    endpoint: str
    outcome: str  # stop, length, tool_calls, abort, error or rejected
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    queue_seconds: float | None = None
    ttft_seconds: float | None = None
    e2e_seconds: float | None = None
    inter_token_seconds: list[float] = field(default_factory=list)


class HitWindow:
    """The share of cached tokens over the last `WINDOW_SECONDS`, kept second by second: O(1) per
    report.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: deque[list[int]] = deque()  # [second, computed, cached], oldest first
        self._computed = self._cached = 0

    def add(self, computed: int, cached: int) -> None:
        """Count prompt tokens that have just been computed, or read from the cache."""
        now = int(self._clock())
        if not self._seconds or self._seconds[-1][0] != now:
            self._seconds.append([now, 0, 0])
        self._seconds[-1][1] += computed
        self._seconds[-1][2] += cached
        self._computed += computed
        self._cached += cached
        self._forget(now)

    def ratio(self) -> float:
        """The share of cached tokens; NaN if none were counted."""
        self._forget(int(self._clock()))
        total = self._computed + self._cached
        return self._cached / total if total else math.nan

    def _forget(self, now: int) -> None:
        while self._seconds and self._seconds[0][0] <= now - WINDOW_SECONDS:
            _, computed, cached = self._seconds.popleft()
            self._computed -= computed
            self._cached -= cached


class Metrics:
    """The counters of a server, rendered as a Prometheus page."""

    content_type: Final = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(
        self,
        model: str = "",
        clock: Callable[[], float] = time.monotonic,
        aliases: Literal["none", "vllm"] = "none",
    ) -> None:
        """With `aliases` the page also has the names of `metrics_aliases`."""
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the page
        self.registry = CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self._counters = {each.name: self._counter(each) for each in _of("counter")}
        self._gauges = {each.name: self._gauge(each) for each in _of("gauge")}
        self._histograms = {each.name: self._histogram(each) for each in _of("histogram")}
        for each in _of("counter"):
            for labels in each.series():  # at 0, so that the first event is a visible increase
                _series(self._counters[each.name], labels)
        for each in _of("histogram"):
            for labels in each.series():
                _series(self._histograms[each.name], labels)
        self._gauges["radixserve_build_info"].labels(__version__).set(1)
        self.model, self._aliases = model, aliases
        self._window = HitWindow(clock)
        self._seen: Numbers = {}  # the totals of the last report

    def record(self, record: RequestRecord) -> None:
        """Count a request that ended; call it once for each. O(tokens generated)."""
        self._counters["radixserve_requests_total"].labels(record.endpoint, record.outcome).inc()
        if record.outcome == "rejected" or record.endpoint == WARMING:
            return
        self._observe("radixserve_request_prompt_tokens", record.prompt_tokens)
        self._observe("radixserve_request_cached_tokens", record.cached_tokens)
        self._observe("radixserve_request_generated_tokens", record.generated_tokens)
        self._observe("radixserve_queue_seconds", record.queue_seconds)
        if record.ttft_seconds is not None:
            name, prefix = "radixserve_time_to_first_token_seconds", _prefix_of(record)
            self._histograms[name].labels(prefix).observe(record.ttft_seconds)
        self._observe("radixserve_e2e_seconds", record.e2e_seconds)
        self._observe("radixserve_inter_token_seconds", *record.inter_token_seconds)

    def observe_steps(self, stats: EngineStats) -> None:
        """Add the steps since the last report; call it once for each report.

        Totals are added as differences. A total that fell means that a new engine counts from zero.
        """
        if stats.value(STEPS) < self._seen.get(STEPS.key(), 0):
            self._seen = {}
        grown: Numbers = {}
        for key, total in stats.numbers.items():
            if key[0] in self._counters:
                grown[key] = max(0, total - self._seen.get(key, 0))
                self._seen[key] = total
                _series(self._counters[key[0]], key[1:]).inc(grown[key])
        self._window.add(*_prompt_tokens(grown))
        for (name, *labels), values in stats.observed.items():
            for value in values:
                _series(self._histograms[name], labels).observe(value)

    def error_told(self, code: str | None) -> None:
        """Count an error that was sent to a client, by the code of its envelope."""
        known = code if code in CODES else OTHER_CODE
        self._counters["radixserve_request_errors_total"].labels(known).inc()

    def engine_restarted(self, cause: str) -> None:
        """Count a restart of the engine after a "crash" or a "hang"; its totals begin at zero."""
        self._counters["radixserve_engine_restarts_total"].labels(cause).inc()
        self._seen = {}

    def setting_changed(self, setting: str, by: str = "admin") -> None:
        """Count a change of one setting by an administrator, or by the server itself (auto)."""
        self._counters["radixserve_setting_changes_total"].labels(setting, by).inc()

    def volatile_line_removed(self) -> None:
        """Count a line that was left out of a system prompt."""
        self._counters["radixserve_volatile_prefix_removed_total"].inc()

    def tokenizer_restarted(self) -> None:
        """Count a tokenizer process that died or was killed and is replaced."""
        self._counters["radixserve_tokenizer_restarts_total"].inc()

    def request_resumed(self) -> None:
        """Count a request that a new engine continues after the death of another."""
        self._counters["radixserve_requests_resumed_total"].inc()

    def render(
        self, stats: EngineStats, info: EngineInfo | None, *, up: bool | None = None
    ) -> bytes:
        """Render the page with the newest state of the engine. `up`: whether requests are accepted
        (None: if there is an `info`).
        """
        self.take_state(stats, info, up=up)
        collectors = (self.registry, *self.other_names(info))
        return b"".join(map(prometheus_client.generate_latest, collectors))

    def other_names(self, info: EngineInfo | None) -> list[VllmNames]:
        """What the page has behind `registry`: with aliases the numbers under their other names."""
        wanted = self._aliases == "vllm"
        return [VllmNames(self.registry, self.model, info)] if wanted else []

    def take_state(
        self, stats: EngineStats, info: EngineInfo | None, *, up: bool | None = None
    ) -> None:
        """Set the gauges to the newest state of the engine, as for `render`."""
        for each in ENGINE:
            if each.kind == "gauge":
                self._set_reported(each, _idle(info) | stats.numbers)
        self._set("radixserve_hit_ratio", self._window.ratio())
        self._set("radixserve_engine_up", float(info is not None if up is None else up))
        if info is not None:
            yes_no = [str(each).lower() for each in (info.exact, info.cache_enabled)]
            self._set("radixserve_engine_fallback", float(info.fallback_reason is not None))
            self._gauges["radixserve_model_info"].clear()
            self._set(
                "radixserve_model_info",
                1,
                self.model,
                info.device,
                info.dtype,
                info.attention,
                *yes_no,
            )

    def _set_reported(self, each: Declared, numbers: Numbers) -> None:
        """Set a gauge of the engine; known series that are not reported are 0."""
        gauge, known = self._gauges[each.name], {each.key(*labels): 0.0 for labels in each.series()}
        if each.labels:
            gauge.clear()
        reported = {key: value for key, value in numbers.items() if key[0] == each.name}
        for key, value in (known | reported).items():
            _series(gauge, key[1:]).set(value)

    def _observe(self, name: str, *values: float | None) -> None:
        histogram = self._histograms[name]
        for value in values:
            if value is not None:
                histogram.observe(value)

    def _set(self, name: str, value: float, *labels: str) -> None:
        gauge = self._gauges[name]
        (gauge.labels(*labels) if labels else gauge).set(value)

    def _counter(self, each: Declared) -> Counter:
        return Counter(each.name, each.help, each.labels, registry=self.registry)

    def _gauge(self, each: Declared) -> Gauge:
        return Gauge(each.name, each.help, each.labels, registry=self.registry)

    def _histogram(self, each: Declared) -> Histogram:
        return Histogram(
            each.name, each.help, each.labels, registry=self.registry, buckets=each.buckets
        )


_Family = TypeVar("_Family", Counter, Gauge, Histogram)


def _series(family: _Family, labels: Sequence[str]) -> _Family:
    """One series of a metric, which is made if it is new."""
    return family.labels(*labels) if labels else family


def _of(kind: str) -> list[Declared]:
    return [each for each in METRICS if each.kind == kind]


def _prefix_of(record: RequestRecord) -> str:
    """Whether most of the prompt was in the cache. A few tokens of a template nearly always are."""
    return WARM if 2 * record.cached_tokens >= record.prompt_tokens else COLD


def _prompt_tokens(grown: Numbers) -> tuple[int, int]:
    """Prompt tokens that were computed, and that were cached in any tier, among new counts."""
    counts = {key[1]: int(count) for key, count in grown.items() if key[0] == PROMPT_TOKENS.name}
    computed = counts.pop(COMPUTED, 0)
    return computed, sum(counts.values())


def _idle(info: EngineInfo | None) -> Numbers:
    """The gauges of an engine that has not reported yet: everything is free."""
    budget = info.num_slots * info.slot_bytes if info else 0
    return {KV_BYTES.key(state): budget for state in ("budget", "free")}

"""Every metric, declared once; docs/metrics.md is made from the same table.

The front records each request when it ends, passes on each report of the engine, and renders the page. Only plain
values come in: this module knows no HTTP, no engine process and no tensor. Used from the event loop's thread.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from radixserve import __version__
from radixserve.step import EngineInfo, EngineStats

_SECONDS: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)  # fmt: skip
_TOKENS: Final = (0.0, *(float(1 << n) for n in range(18)))
_SEQUENCES: Final = tuple(float(1 << n) for n in range(11))

WINDOW_SECONDS: Final = 300
"""How far back the hit ratio looks."""


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric as docs/metrics.md shows it. `unit` is what a value counts."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = _SECONDS


METRICS: Final = (
    # What was asked and what came of it.
    Declared(
        "counter",
        "radixserve_requests_total",
        "requests",
        "Requests that ended, by endpoint and outcome (stop, length, abort, error, rejected)",
        ("endpoint", "outcome"),
    ),
    Declared("gauge", "radixserve_requests_running", "requests", "Sequences that take part in steps now"),
    Declared("gauge", "radixserve_requests_waiting", "requests", "Sequences accepted and not yet running"),
    Declared(
        "counter",
        "radixserve_prompt_tokens_total",
        "tokens",
        "Prompt tokens by where their keys and values came from: computed, or read from device, host or disk memory",
        ("source",),
    ),
    Declared("counter", "radixserve_generated_tokens_total", "tokens", "Tokens generated"),
    Declared("histogram", "radixserve_request_prompt_tokens", "tokens", "Length of each prompt", buckets=_TOKENS),
    Declared(
        "histogram",
        "radixserve_request_cached_tokens",
        "tokens",
        "Tokens of each prompt that the cache answered",
        buckets=_TOKENS,
    ),
    Declared("histogram", "radixserve_request_generated_tokens", "tokens", "Length of each answer", buckets=_TOKENS),
    # How long it took.
    Declared("histogram", "radixserve_queue_seconds", "seconds", "From acceptance to the first step of a request"),
    Declared(
        "histogram", "radixserve_time_to_first_token_seconds", "seconds", "From acceptance to the first token (TTFT)"
    ),
    Declared("histogram", "radixserve_inter_token_seconds", "seconds", "Between one token of an answer and the next"),
    Declared("histogram", "radixserve_e2e_seconds", "seconds", "From acceptance to the end of a request"),
    # What the cache does.
    Declared(
        "gauge",
        "radixserve_hit_ratio",
        "ratio",
        f"Share of prompt tokens answered by the cache in the last {WINDOW_SECONDS} seconds; NaN without any",
    ),
    Declared(
        "gauge",
        "radixserve_kv_bytes",
        "bytes",
        "Memory for keys and values: budget = free + used, used = leased + evictable; "
        "cached is what the prefix tree owns, leased or not",
        ("state",),
    ),
    Declared("counter", "radixserve_evicted_tokens_total", "tokens", "Tokens dropped from the prefix tree for others"),
    Declared("gauge", "radixserve_tree_nodes", "nodes", "Nodes of the prefix tree"),
    # What a step holds.
    Declared("counter", "radixserve_steps_total", "steps", "Steps of the engine"),
    Declared("histogram", "radixserve_step_seconds", "seconds", "Duration of a step"),
    Declared("histogram", "radixserve_step_tokens", "tokens", "Tokens computed in a step", buckets=_TOKENS),
    Declared("histogram", "radixserve_step_sequences", "sequences", "Sequences in a step", buckets=_SEQUENCES),
    Declared("counter", "radixserve_preemptions_total", "preemptions", "Times a running sequence gave its memory back"),
    # What is running.
    Declared("gauge", "radixserve_engine_up", "0 or 1", "1 while the engine works and the server does not drain"),
    Declared("counter", "radixserve_engine_restarts_total", "restarts", "Times a dead engine was started again"),
    Declared(
        "counter", "radixserve_requests_resumed_total", "resumptions", "Times a new engine went on with a request"
    ),
    Declared(
        "gauge",
        "radixserve_model_info",
        "always 1",
        "The model in the labels; exact says whether a hit equals a miss bit for bit",
        ("model", "device", "dtype", "attention", "exact", "cache"),
    ),
    Declared(
        "gauge",
        "radixserve_engine_fallback",
        "0 or 1",
        "1 while something slower serves in the place of the device's own path; /version says why (fallback_reason)",
    ),
    Declared("gauge", "radixserve_build_info", "always 1", "The version of radixserve in the label", ("version",)),
)
"""All metrics, in the order of the documentation."""

_TOTALS: Final = (
    ("steps_total", "radixserve_steps_total", ()),
    ("computed_prompt_tokens_total", "radixserve_prompt_tokens_total", ("computed",)),
    ("cached_prompt_tokens_total", "radixserve_prompt_tokens_total", ("device",)),
    ("generated_tokens_total", "radixserve_generated_tokens_total", ()),
    ("evicted_tokens_total", "radixserve_evicted_tokens_total", ()),
    ("preemptions_total", "radixserve_preemptions_total", ()),
)
"""Field of `EngineStats`, the counter it feeds, the counter's label values."""


@dataclass(slots=True)
class RequestRecord:
    """One request as it ended. Times that never came to be are None."""

    endpoint: str
    outcome: str  # stop, length, abort, error or rejected
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    queue_seconds: float | None = None
    ttft_seconds: float | None = None
    e2e_seconds: float | None = None
    inter_token_seconds: list[float] = field(default_factory=list)


class HitWindow:
    """The share of cached tokens over the last `WINDOW_SECONDS`, kept second by second: O(1) per report."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: deque[list[int]] = deque()  # [second, computed, cached], oldest first
        self._computed = self._cached = 0

    def add(self, computed: int, cached: int) -> None:
        """Count prompt tokens just now computed and read from the cache."""
        now = int(self._clock())
        if not self._seconds or self._seconds[-1][0] != now:
            self._seconds.append([now, 0, 0])
        self._seconds[-1][1] += computed
        self._seconds[-1][2] += cached
        self._computed += computed
        self._cached += cached
        self._forget(now)

    def ratio(self) -> float:
        """Cached of all; NaN where nothing was counted."""
        self._forget(int(self._clock()))
        total = self._computed + self._cached
        return self._cached / total if total else math.nan

    def _forget(self, now: int) -> None:
        while self._seconds and self._seconds[0][0] <= now - WINDOW_SECONDS:
            _, computed, cached = self._seconds.popleft()
            self._computed -= computed
            self._cached -= cached


class Metrics:
    """Counts what happened and renders it as a Prometheus page."""

    content_type: Final = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, model: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the page
        self.registry = CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self._counters = {each.name: self._counter(each) for each in METRICS if each.kind == "counter"}
        self._gauges = {each.name: self._gauge(each) for each in METRICS if each.kind == "gauge"}
        self._histograms = {each.name: self._histogram(each) for each in METRICS if each.kind == "histogram"}
        for source in ("computed", "device", "host", "disk"):
            self._counters["radixserve_prompt_tokens_total"].labels(source)
        self._gauges["radixserve_build_info"].labels(__version__).set(1)
        self._model = model
        self._window = HitWindow(clock)
        self._seen: dict[str, int] = {}  # the totals of the last report

    def record(self, record: RequestRecord) -> None:
        """Count a request that ended; call it once for each. O(tokens generated)."""
        self._counters["radixserve_requests_total"].labels(record.endpoint, record.outcome).inc()
        if record.outcome == "rejected":
            return
        self._observe("radixserve_request_prompt_tokens", record.prompt_tokens)
        self._observe("radixserve_request_cached_tokens", record.cached_tokens)
        self._observe("radixserve_request_generated_tokens", record.generated_tokens)
        self._observe("radixserve_queue_seconds", record.queue_seconds)
        self._observe("radixserve_time_to_first_token_seconds", record.ttft_seconds)
        self._observe("radixserve_e2e_seconds", record.e2e_seconds)
        self._observe("radixserve_inter_token_seconds", *record.inter_token_seconds)

    def observe_steps(self, stats: EngineStats) -> None:
        """Add what a new report tells of the steps since the last; call it once for each report.

        Totals enter as differences. One that fell means that the engine started anew and counts from zero again.
        """
        if stats.steps_total < self._seen.get("steps_total", 0):
            self._seen = {}
        grown = {total: max(0, getattr(stats, total) - self._seen.get(total, 0)) for total, _, _ in _TOTALS}
        for total, counter, labels in _TOTALS:
            (self._counters[counter].labels(*labels) if labels else self._counters[counter]).inc(grown[total])
            self._seen[total] = getattr(stats, total)
        self._window.add(grown["computed_prompt_tokens_total"], grown["cached_prompt_tokens_total"])
        self._observe("radixserve_step_seconds", *stats.step_seconds)
        self._observe("radixserve_step_tokens", *stats.step_tokens)
        self._observe("radixserve_step_sequences", *stats.step_sequences)

    def engine_restarted(self) -> None:
        """A dead engine was started again: its totals begin at zero."""
        self._counters["radixserve_engine_restarts_total"].inc()
        self._seen = {}

    def request_resumed(self) -> None:
        """A new engine goes on with a request that a dead one left unfinished."""
        self._counters["radixserve_requests_resumed_total"].inc()

    def render(self, stats: EngineStats, info: EngineInfo | None, *, up: bool | None = None) -> bytes:
        """The page with the newest state of the engine; `up`: requests are taken (None: if `info` is there)."""
        self._set("radixserve_requests_running", stats.running)
        self._set("radixserve_requests_waiting", stats.waiting)
        self._set("radixserve_tree_nodes", stats.tree_nodes)
        self._set("radixserve_hit_ratio", self._window.ratio())
        self._set("radixserve_engine_up", float(info is not None if up is None else up))
        for state, num_slots in _slots_by_state(stats, info).items():
            self._set("radixserve_kv_bytes", num_slots * (info.slot_bytes if info else 0), state)
        if info is not None:
            yes_no = [str(each).lower() for each in (info.exact, info.cache_enabled)]
            self._set("radixserve_engine_fallback", float(info.fallback_reason is not None))
            self._gauges["radixserve_model_info"].clear()
            self._set("radixserve_model_info", 1, self._model, info.device, info.dtype, info.attention, *yes_no)
        return prometheus_client.generate_latest(self.registry)

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
        return Histogram(each.name, each.help, each.labels, registry=self.registry, buckets=each.buckets)


def _slots_by_state(stats: EngineStats, info: EngineInfo | None) -> dict[str, int]:
    """Slots per state of `radixserve_kv_bytes`; before the first report everything is free."""
    budget = info.num_slots if info else 0
    reported = stats.slots_free or stats.slots_leased or stats.slots_cached
    free = stats.slots_free if reported else budget
    return {
        "budget": budget,
        "free": free,
        "used": budget - free,
        "leased": stats.slots_leased,
        "evictable": budget - free - stats.slots_leased,
        "cached": stats.slots_cached,
    }


def markdown() -> str:
    """The table of docs/metrics.md: one row per metric."""
    lines = ["| name | type | labels | unit | meaning |", "|---|---|---|---|---|"]
    for each in METRICS:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{each.name}` | {each.kind} | {labels} | {each.unit} | {each.help} |")
    return "\n".join(lines) + "\n"

"""The table of all metrics. docs/metrics.md is generated from it, and `metrics` counts.

Contains only names and texts, and which total of the engine feeds which counter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal, get_args

from radixserve.errors import CODES
from radixserve.step import EngineStats, FaultKind
from radixserve.tiers import DEVICE, NAMES

_SECONDS: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)  # fmt: skip
_TOKENS: Final = (0.0, *(float(1 << n) for n in range(18)))
_SEQUENCES: Final = tuple(float(1 << n) for n in range(11))

WINDOW_SECONDS: Final = 300
"""The time window of the hit ratio."""

ENDPOINTS: Final = ("chat", "completions", "responses", "messages")
OUTCOMES: Final = ("stop", "length", "tool_calls", "abort", "error", "rejected")
SOURCES: Final = ("computed", DEVICE, *NAMES)
RESTART_CAUSES: Final = ("crash", "hang")
OTHER_CODE: Final = "other"
"""The label for codes that are not listed, which bounds the number of series."""


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric as docs/metrics.md shows it. `unit` is what a value counts; `values` are those
    that each label of a counter can have, in the order of `labels`.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = _SECONDS
    values: tuple[tuple[str, ...], ...] = ()

    def series(self) -> Iterator[tuple[str, ...]]:
        """The label values of every series that a counter with labels can have."""
        return product(*self.values) if self.values else iter(())


METRICS: Final = (
    # Requests.
    Declared(
        "counter",
        "radixserve_requests_total",
        "requests",
        "Requests that ended, by endpoint and outcome (stop, length, tool_calls, abort, error, "
        "rejected)",
        ("endpoint", "outcome"),
        values=(ENDPOINTS, OUTCOMES),
    ),
    Declared(
        "counter",
        "radixserve_request_errors_total",
        "errors",
        "Errors sent to clients of any endpoint, by the code in the error envelope",
        ("code",),
        values=((*CODES, OTHER_CODE),),
    ),
    Declared(
        "counter",
        "radixserve_volatile_prefix_removed_total",
        "lines",
        "Lines left out at the front of system prompts (volatile_prefix)",
    ),
    Declared(
        "gauge", "radixserve_requests_running", "requests", "Sequences that take part in steps now"
    ),
    Declared(
        "gauge", "radixserve_requests_waiting", "requests", "Sequences accepted and not yet running"
    ),
    Declared(
        "counter",
        "radixserve_prompt_tokens_total",
        "tokens",
        "Prompt tokens by where their keys and values came from: computed, or read from "
        "device, host or disk memory",
        ("source",),
        values=(SOURCES,),
    ),
    Declared("counter", "radixserve_generated_tokens_total", "tokens", "Tokens generated"),
    Declared(
        "histogram",
        "radixserve_request_prompt_tokens",
        "tokens",
        "Length of each prompt",
        buckets=_TOKENS,
    ),
    Declared(
        "histogram",
        "radixserve_request_cached_tokens",
        "tokens",
        "Tokens of each prompt found in the cache",
        buckets=_TOKENS,
    ),
    Declared(
        "histogram",
        "radixserve_request_generated_tokens",
        "tokens",
        "Length of each answer",
        buckets=_TOKENS,
    ),
    # Times.
    Declared(
        "histogram",
        "radixserve_queue_seconds",
        "seconds",
        "From acceptance to the first step of a request",
    ),
    Declared(
        "histogram",
        "radixserve_time_to_first_token_seconds",
        "seconds",
        "From acceptance to the first token (TTFT)",
    ),
    Declared(
        "histogram",
        "radixserve_inter_token_seconds",
        "seconds",
        "Between one token of an answer and the next",
    ),
    Declared(
        "histogram", "radixserve_e2e_seconds", "seconds", "From acceptance to the end of a request"
    ),
    # The cache.
    Declared(
        "gauge",
        "radixserve_hit_ratio",
        "ratio",
        f"Share of prompt tokens found in the cache in the last {WINDOW_SECONDS} "
        "seconds; NaN without any",
    ),
    Declared(
        "gauge",
        "radixserve_kv_bytes",
        "bytes",
        "Memory for keys and values: budget = free + used, used = leased + evictable; "
        "cached is what the prefix tree owns, leased or not",
        ("state",),
    ),
    Declared(
        "counter",
        "radixserve_evicted_tokens_total",
        "tokens",
        "Tokens evicted from the prefix tree",
    ),
    Declared(
        "gauge",
        "radixserve_tier_bytes",
        "bytes",
        "Keys and values below the device, by tier (host, disk): budget and used",
        ("tier", "state"),
    ),
    Declared(
        "counter",
        "radixserve_tier_tokens_total",
        "tokens",
        "Tokens copied to a tier (down) and back to the device (up)",
        ("tier", "direction"),
        values=(("host", "disk"), ("down", "up")),
    ),
    Declared("gauge", "radixserve_store_runs", "runs", "Runs stored on the disk"),
    Declared(
        "gauge",
        "radixserve_store_writing",
        "0 or 1",
        "1 while the disk is written to; 0 without a disk, and while the circuit breaker is open",
    ),
    Declared(
        "counter",
        "radixserve_store_evicted_runs_total",
        "runs",
        "Runs evicted from the disk",
    ),
    Declared(
        "counter",
        "radixserve_store_verify_failures_total",
        "files",
        "Stored files that failed verification and were removed",
    ),
    Declared(
        "counter",
        "radixserve_store_errors_total",
        "errors",
        "Errors of the disk, by operation (read, write)",
        ("operation",),
        values=(("read", "write"),),
    ),
    Declared(
        "counter",
        "radixserve_store_skipped_total",
        "writes",
        "Writes skipped: no room, too many waiting, slots needed by a request, or errors before",
    ),
    Declared("gauge", "radixserve_tree_nodes", "nodes", "Nodes of the prefix tree"),
    # Steps.
    Declared("counter", "radixserve_steps_total", "steps", "Steps of the engine"),
    Declared(
        "counter",
        "radixserve_step_faults_total",
        "faults",
        "Steps that failed, by kind (exception, out_of_memory), and rows whose "
        "logits were not finite (not_finite)",
        ("kind",),
        values=(get_args(FaultKind),),
    ),
    Declared("histogram", "radixserve_step_seconds", "seconds", "Duration of a step"),
    Declared(
        "histogram",
        "radixserve_step_tokens",
        "tokens",
        "Tokens computed in a step",
        buckets=_TOKENS,
    ),
    Declared(
        "histogram",
        "radixserve_step_sequences",
        "sequences",
        "Sequences in a step",
        buckets=_SEQUENCES,
    ),
    Declared(
        "counter",
        "radixserve_preemptions_total",
        "preemptions",
        "Times a running sequence was preempted",
    ),
    # The processes and the model.
    Declared(
        "gauge",
        "radixserve_engine_up",
        "0 or 1",
        "1 while the engine works and the server does not drain",
    ),
    Declared(
        "counter",
        "radixserve_engine_restarts_total",
        "restarts",
        "Times the engine was started again, by cause: crash (the process ended) or hang "
        "(it made no progress and was killed)",
        ("cause",),
        values=(RESTART_CAUSES,),
    ),
    Declared(
        "counter",
        "radixserve_tokenizer_restarts_total",
        "restarts",
        "Times a tokenizer process that died, or took too long for a request, was replaced",
    ),
    Declared(
        "counter",
        "radixserve_requests_resumed_total",
        "resumptions",
        "Times a new engine continued a request",
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
        "1 while a slower implementation replaces the device's fast path; /version "
        "says why (fallback_reason)",
    ),
    Declared(
        "gauge",
        "radixserve_build_info",
        "always 1",
        "The version of radixserve in the label",
        ("version",),
    ),
)
"""All metrics, in the order of the documentation."""

_Feeds = tuple[tuple[Callable[[EngineStats], int], str, tuple[str, ...]], ...]


def _device_tokens(stats: EngineStats) -> int:
    """Cached prompt tokens that were on the device already."""
    return stats.cached_prompt_tokens_total - sum(stats.promoted_prompt_tokens_total.values())


def _prompt_tokens_of(tier: str) -> Callable[[EngineStats], int]:
    return lambda stats: stats.promoted_prompt_tokens_total.get(tier, 0)


def _tokens_up_of(tier: str) -> Callable[[EngineStats], int]:
    return lambda stats: stats.tiers.promoted_tokens_total.get(tier, 0)


TOTALS: Final[_Feeds] = (
    (lambda stats: stats.steps_total, "radixserve_steps_total", ()),
    (
        lambda stats: stats.computed_prompt_tokens_total,
        "radixserve_prompt_tokens_total",
        ("computed",),
    ),
    (_device_tokens, "radixserve_prompt_tokens_total", ("device",)),
    *((_prompt_tokens_of(tier), "radixserve_prompt_tokens_total", (tier,)) for tier in NAMES),
    (lambda stats: stats.generated_tokens_total, "radixserve_generated_tokens_total", ()),
    (lambda stats: stats.evicted_tokens_total, "radixserve_evicted_tokens_total", ()),
    (lambda stats: stats.preemptions_total, "radixserve_preemptions_total", ()),
    (
        lambda stats: stats.faults_total.get("exception", 0),
        "radixserve_step_faults_total",
        ("exception",),
    ),
    (
        lambda stats: stats.faults_total.get("out_of_memory", 0),
        "radixserve_step_faults_total",
        ("out_of_memory",),
    ),
    (
        lambda stats: stats.faults_total.get("not_finite", 0),
        "radixserve_step_faults_total",
        ("not_finite",),
    ),
    (
        lambda stats: stats.tiers.demoted_tokens_total,
        "radixserve_tier_tokens_total",
        ("host", "down"),
    ),
    *((_tokens_up_of(tier), "radixserve_tier_tokens_total", (tier, "up")) for tier in NAMES),
    (
        lambda stats: stats.tiers.stored_tokens_total,
        "radixserve_tier_tokens_total",
        ("disk", "down"),
    ),
    (lambda stats: stats.tiers.evicted_runs_total, "radixserve_store_evicted_runs_total", ()),
    (lambda stats: stats.tiers.verify_failures_total, "radixserve_store_verify_failures_total", ()),
    (lambda stats: stats.tiers.read_errors_total, "radixserve_store_errors_total", ("read",)),
    (lambda stats: stats.tiers.write_errors_total, "radixserve_store_errors_total", ("write",)),
    (lambda stats: stats.tiers.skipped_total, "radixserve_store_skipped_total", ()),
)
"""A running total of the engine, the counter it feeds, the counter's label values."""


def markdown() -> str:
    """The table of docs/metrics.md: one row per metric."""
    lines = ["| name | type | labels | unit | meaning |", "|---|---|---|---|---|"]
    for each in METRICS:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{each.name}` | {each.kind} | {labels} | {each.unit} | {each.help} |")
    return "\n".join(lines) + "\n"

"""The table of all metrics, from which docs/metrics.md is generated: those of the front are
declared here, those of the engine process by their owners.
"""

from __future__ import annotations

from typing import Final

from radixserve.cache import counters as cache
from radixserve.declared import TOKENS, Declared
from radixserve.engine import counters as engine
from radixserve.errors import CODES
from radixserve.store.folder import counters as store
from radixserve.tiers import counters as tiers

WINDOW_SECONDS: Final = 300
"""The time window of the hit ratio."""

WARMING: Final = "warm"
"""Stands for an endpoint: prompts that were computed by POST /cache/warm or for a file."""

ENDPOINTS: Final = ("chat", "completions", "responses", "messages", WARMING)
OUTCOMES: Final = ("stop", "length", "tool_calls", "abort", "error", "rejected")
RESTART_CAUSES: Final = ("crash", "hang")
CHANGEABLE: Final = (
    *("kv_budget", "host_budget", "eviction_policy", "prefill_share", "max_running"),
    *("max_queue", "max_queue_tokens", "max_queue_seconds", "overload_queue_seconds"),
)
CHANGED_BY: Final = ("admin", "auto")
COLD: Final = "cold"
WARM: Final = "warm"
OTHER_CODE: Final = "other"
"""The label for codes that are not listed, which bounds the number of series."""


_FRONT: Final = (
    # Requests.
    Declared(
        "counter",
        "radixserve_requests_total",
        "requests",
        "Requests that ended, by endpoint and outcome (stop, length, tool_calls, abort, error, "
        "rejected). Prompts that were only warmed (warm) are not in the histograms of requests",
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
        "counter",
        "radixserve_setting_changes_total",
        "changes",
        "Settings that were changed while the server ran, by an administrator (PUT /config) or by "
        "the server itself (auto)",
        ("setting", "by"),
        values=(CHANGEABLE, CHANGED_BY),
    ),
    Declared(
        "histogram",
        "radixserve_request_prompt_tokens",
        "tokens",
        "Length of each prompt",
        buckets=TOKENS,
    ),
    Declared(
        "histogram",
        "radixserve_request_cached_tokens",
        "tokens",
        "Tokens of each prompt found in the cache",
        buckets=TOKENS,
    ),
    Declared(
        "histogram",
        "radixserve_request_generated_tokens",
        "tokens",
        "Length of each answer",
        buckets=TOKENS,
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
        "From acceptance to the first token (TTFT), where at least half of the prompt was cached "
        "(warm) or less (cold)",
        ("prefix",),
        values=((COLD, WARM),),
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
    Declared(
        "gauge",
        "radixserve_hit_ratio",
        "ratio",
        f"Share of prompt tokens found in the cache in the last {WINDOW_SECONDS} "
        "seconds; NaN without any",
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
"""What the front counts itself."""

ENGINE: Final = (*engine.COUNTERS, *cache.COUNTERS, *tiers.COUNTERS, *store.COUNTERS)
"""What its owners in the engine process count, and report as `EngineStats`."""

METRICS: Final = (*_FRONT, *ENGINE)
"""All metrics, in the order of the documentation."""


def markdown() -> str:
    """The table of docs/metrics.md: one row per metric."""
    lines = ["| name | type | labels | unit | meaning |", "|---|---|---|---|---|"]
    for each in METRICS:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{each.name}` | {each.kind} | {labels} | {each.unit} | {each.help} |")
    return "\n".join(lines) + "\n"

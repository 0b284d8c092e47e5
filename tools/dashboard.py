"""Write configs/grafana/radixserve.json anew: `python tools/dashboard.py`.

The dashboard is a table of rows and panels here; Grafana's format around it is the same for every
panel. tests/test_dashboard.py runs every query against a real Prometheus.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TARGET = Path(__file__).parent.parent / "configs" / "grafana" / "radixserve.json"
COLUMNS = 24  # of a row, in Grafana's units
_HEIGHT = 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}

Unit = Literal["percentunit", "s", "bytes", "short", "reqps", "none"]


@dataclass(frozen=True)
class Panel:
    """One panel. In a query INSTANCE stands for the chosen servers and RATE for the window of
    rates; `queries` are pairs of query and legend.
    """

    title: str
    about: str
    queries: tuple[tuple[str, str], ...]
    unit: Unit = "short"
    width: int = 8
    kind: Literal["timeseries", "stat"] = "timeseries"
    stacked: bool = False
    most: float | None = None  # the top of the axis


def rate(name: str, labels: str = "", by: str = "") -> str:
    """The increase per second of a counter, added up over servers and what is not in `by`."""
    inner = ",".join(filter(None, ("INSTANCE", labels)))
    return f"sum{f' by ({by})' if by else ''} (rate({name}{{{inner}}}[RATE]))"


def quantile(share: float, name: str, labels: str = "") -> str:
    """A quantile of a histogram over all servers."""
    return f"histogram_quantile({share}, {rate(f'{name}_bucket', labels, 'le')})"


def quantiles(name: str, labels: str = "", prefix: str = "") -> tuple[tuple[str, str], ...]:
    """The median and the 95th percentile with their legends."""
    return tuple(
        (quantile(share, name, labels), f"{prefix}{word}")
        for share, word in ((0.5, "median"), (0.95, "95 %"))
    )


def gauge(name: str, labels: str = "", by: str = "") -> str:
    """A gauge, added up over servers and what is not in `by`."""
    inner = ",".join(filter(None, ("INSTANCE", labels)))
    return f"sum{f' by ({by})' if by else ''} ({name}{{{inner}}})"


_PROMPT = "radixserve_prompt_tokens_total"
_TTFT = "radixserve_time_to_first_token_seconds"
_CACHED = 'source!="computed"'

CACHE = (
    Panel(
        "Hit share",
        "Prompt tokens that were not computed, of all.",
        ((f"{rate(_PROMPT, _CACHED)} / {rate(_PROMPT)}", "all tiers"),),
        "percentunit",
        4,
        "stat",
        most=1,
    ),
    Panel(
        "Hit share by tier",
        "Prompt tokens by where their K/V came from; what is missing to 100 % was computed.",
        (
            (
                f"{rate(_PROMPT, _CACHED, 'source')} / ignoring(source) group_left {rate(_PROMPT)}",
                "{{source}}",
            ),
        ),
        "percentunit",
        12,
        stacked=True,
        most=1,
    ),
    Panel(
        "Prompt tokens per second",
        "Computed, and read from each tier.",
        ((rate(_PROMPT, by="source"), "{{source}}"),),
        stacked=True,
    ),
    Panel(
        "Saved prefill",
        "Seconds of computing that cached tokens saved, per second.",
        ((rate("radixserve_saved_prefill_seconds_total"), "saved"),),
        "s",
    ),
    Panel(
        "Hits by depth",
        "Cached prompt tokens by their position in the prompt, per second.",
        ((rate("radixserve_hit_tokens_total", by="depth"), "{{depth}}"),),
        stacked=True,
    ),
    Panel(
        "Evicted and computed tokens",
        "If as much is evicted as is computed, the cache is too small for what comes.",
        (
            (rate("radixserve_evicted_tokens_total"), "evicted"),
            (rate(_PROMPT, 'source="computed"'), "computed"),
        ),
    ),
    Panel(
        "Why tokens were not found",
        "Prompt tokens behind what was found, by cause. never_seen is no loss.",
        ((rate("radixserve_prefix_loss_tokens_total", by="cause"), "{{cause}}"),),
        stacked=True,
    ),
    Panel(
        "What more memory would find",
        "Computed prompt tokens that a larger budget would have kept, as a share of all.",
        (
            (
                f"{rate('radixserve_ghost_hit_tokens_total', by='budget')} / ignoring(budget) "
                f"group_left {rate(_PROMPT)}",
                "{{budget}} of the memory",
            ),
        ),
        "percentunit",
    ),
    Panel(
        "Regret",
        "Tokens that were evicted and then computed again, per second.",
        ((rate("radixserve_eviction_regret_tokens_total"), "computed again"),),
    ),
    Panel(
        "Pinned tokens",
        "What operators keep from being evicted.",
        ((gauge("radixserve_pinned_tokens"), "pinned"),),
    ),
    Panel(
        "Tokens moved between tiers",
        "down: saved to host memory and to the disk; up: copied back for a request.",
        ((rate("radixserve_tier_tokens_total", by="tier, direction"), "{{tier}} {{direction}}"),),
    ),
    Panel(
        "Nodes of the tree",
        "How many different branches the prefix tree holds.",
        ((gauge("radixserve_tree_nodes"), "nodes"),),
    ),
)

LATENCY = (
    Panel(
        "Time to first token, warm",
        "Requests that found at least half of their prompt in the cache.",
        quantiles(_TTFT, 'prefix="warm"'),
        "s",
    ),
    Panel(
        "Time to first token, cold",
        "Requests that found less than half of their prompt in the cache.",
        quantiles(_TTFT, 'prefix="cold"'),
        "s",
    ),
    Panel(
        "Between tokens",
        "From one token of an answer to the next.",
        quantiles("radixserve_inter_token_seconds"),
        "s",
    ),
    Panel(
        "Whole requests",
        "From acceptance to the end.",
        quantiles("radixserve_e2e_seconds"),
        "s",
    ),
    Panel(
        "Time in the queue",
        "From acceptance to the first step.",
        quantiles("radixserve_queue_seconds"),
        "s",
    ),
    Panel(
        "Lengths",
        "Medians of prompts, of what was cached of them, and of answers, in tokens.",
        tuple(
            (quantile(0.5, f"radixserve_request_{word}_tokens"), word)
            for word in ("prompt", "cached", "generated")
        ),
    ),
)

LOAD = (
    Panel(
        "Requests",
        "Running: take part in steps. Waiting: accepted and not yet running.",
        (
            (gauge("radixserve_requests_running"), "running"),
            (gauge("radixserve_requests_waiting"), "waiting"),
        ),
    ),
    Panel(
        "Uncached backlog",
        "Prompt tokens of the waiting requests that must be computed.",
        ((gauge("radixserve_backlog_tokens"), "tokens"),),
    ),
    Panel(
        "Ended requests",
        "Per second, by outcome.",
        ((rate("radixserve_requests_total", by="outcome"), "{{outcome}}"),),
        "reqps",
        stacked=True,
    ),
    Panel(
        "Errors sent",
        "Per second, by the code in the envelope.",
        (
            (
                f"{rate('radixserve_request_errors_total', by='code')} > 0 or on() vector(0)",
                "{{code}}",
            ),
        ),
        "reqps",
    ),
    Panel(
        "Generated tokens per second",
        "Of all answers together.",
        ((rate("radixserve_generated_tokens_total"), "tokens"),),
    ),
    Panel(
        "Preemptions",
        "Running sequences that lost their slots to others, per second.",
        ((rate("radixserve_preemptions_total"), "preemptions"),),
    ),
)

MEMORY = (
    Panel(
        "K/V on the device",
        "leased: held by running requests; evictable: cached and held by nobody; free.",
        ((gauge("radixserve_kv_bytes", 'state=~"leased|evictable|free"', "state"), "{{state}}"),),
        "bytes",
        stacked=True,
    ),
    Panel(
        "K/V budget",
        "What running requests hold of the budget; near 100 % others wait or are preempted.",
        (
            (
                " / ".join(
                    gauge("radixserve_kv_bytes", f'state="{state}"')
                    for state in ("leased", "budget")
                ),
                "leased",
            ),
        ),
        "percentunit",
        most=1,
    ),
    Panel(
        "K/V below the device",
        "Budget and use of host memory and of the disk.",
        ((gauge("radixserve_tier_bytes", by="tier, state"), "{{tier}} {{state}}"),),
        "bytes",
    ),
    Panel(
        "Memory of the front process",
        "Resident memory.",
        (('process_resident_memory_bytes{INSTANCE,job="radixserve"}', "{{instance}}"),),
        "bytes",
    ),
    Panel(
        "Disk",
        "Runs stored, evicted and skipped, and files that failed verification, per second.",
        (
            (rate("radixserve_store_evicted_runs_total"), "evicted"),
            (rate("radixserve_store_skipped_total"), "skipped"),
            (rate("radixserve_store_verify_failures_total"), "damaged"),
        ),
    ),
    Panel(
        "Errors of the disk",
        "Per second, by operation.",
        ((rate("radixserve_store_errors_total", by="operation"), "{{operation}}"),),
    ),
)

_OF_TENANTS = "radixserve_tenant_prompt_tokens_total"

TENANTS = (
    Panel(
        "Hit share by tenant",
        "Prompt tokens that were not computed, of all of the tenant.",
        (
            (
                f"{rate(_OF_TENANTS, _CACHED, 'tenant')} / {rate(_OF_TENANTS, by='tenant')}",
                "{{tenant}}",
            ),
        ),
        "percentunit",
        most=1,
    ),
    Panel(
        "Prompt tokens by tenant",
        "Per second, cached ones included.",
        ((rate(_OF_TENANTS, by="tenant"), "{{tenant}}"),),
        stacked=True,
    ),
    Panel(
        "Computed prompt tokens by tenant",
        "Per second: who makes the work.",
        ((rate(_OF_TENANTS, 'source="computed"', "tenant"), "{{tenant}}"),),
        stacked=True,
    ),
    Panel(
        "K/V by tenant",
        "What each has in the cache on the device.",
        ((gauge("radixserve_tenant_kv_bytes", by="tenant"), "{{tenant}}"),),
        "bytes",
        stacked=True,
    ),
    Panel(
        "Evicted for others",
        "Tokens that a tenant lost to requests of other tenants, per second.",
        ((rate("radixserve_tenant_evicted_tokens_total", 'by="others"', "tenant"), "{{tenant}}"),),
    ),
    Panel(
        "Evicted for itself",
        "Tokens that a tenant lost to requests of its own, per second.",
        ((rate("radixserve_tenant_evicted_tokens_total", 'by="self"', "tenant"), "{{tenant}}"),),
    ),
)

STEPS = (
    Panel("Duration of steps", "", quantiles("radixserve_step_seconds"), "s"),
    Panel(
        "Steps under way",
        "Share of the time in which the engine computes.",
        (("avg (rate(radixserve_step_seconds_sum{INSTANCE}[RATE]))", "busy"),),
        "percentunit",
        most=1,
    ),
    Panel(
        "Size of steps",
        "Means of the sequences and tokens in a step.",
        tuple(
            (
                f"{rate(f'radixserve_step_{word}_sum')} / {rate(f'radixserve_step_{word}_count')}",
                word,
            )
            for word in ("sequences", "tokens")
        ),
    ),
    Panel(
        "Faults",
        "Steps that failed and rows without finite logits, per second.",
        ((rate("radixserve_step_faults_total", by="kind"), "{{kind}}"),),
    ),
    Panel(
        "Restarts",
        "In five minutes: of the engine, by cause; of tokenizer processes; requests that went on.",
        (
            (
                "sum by (cause) (increase(radixserve_engine_restarts_total{INSTANCE}[5m]))",
                "engine, {{cause}}",
            ),
            ("sum (increase(radixserve_tokenizer_restarts_total{INSTANCE}[5m]))", "tokenizer"),
            ("sum (increase(radixserve_requests_resumed_total{INSTANCE}[5m]))", "resumed"),
        ),
    ),
    Panel(
        "Servers",
        "1: ready.",
        (("radixserve_engine_up{INSTANCE}", "{{instance}}"),),
        "none",
    ),
)

ROWS = (
    ("Cache", CACHE),
    ("Latency", LATENCY),
    ("Load", LOAD),
    ("Memory", MEMORY),
    ("Tenants", TENANTS),
    ("Steps and faults", STEPS),
)


def queries() -> Iterator[tuple[str, str]]:
    """Every query with the title of its panel, as Grafana gets it."""
    for _, panels in ROWS:
        for panel in panels:
            for query, _ in panel.queries:
                yield panel.title, _with_variables(query)


def _with_variables(query: str) -> str:
    return query.replace("INSTANCE", 'instance=~"$instance"').replace("RATE", "$__rate_interval")


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON model."""
    return {
        "uid": "radixserve",
        "title": "radixserve",
        "tags": ["radixserve"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,  # one crosshair in all panels
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), _instances()]},
        "panels": list(_placed()),
    }


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }


def _instances() -> dict[str, Any]:
    query = "label_values(radixserve_build_info, instance)"
    return {
        "name": "instance",
        "label": "Server",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": "instances"},
        "definition": query,
        "refresh": 2,  # when the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _placed() -> Iterator[dict[str, Any]]:
    """Rows and panels from the left to the right, then down."""
    number, y = 0, 0
    for title, panels in ROWS:
        number += 1
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": title, "gridPos": place, "panels": []}
        x, y = 0, y + 1
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + _HEIGHT
            number += 1
            place = {"x": x, "y": y, "w": panel.width, "h": _HEIGHT}
            yield {"id": number, "gridPos": place, **_model(panel)}
            x += panel.width
        y += _HEIGHT


def _model(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        fill = 40 if panel.stacked else 10
        defaults["custom"] = {"fillOpacity": fill, "showPoints": "never", "stacking": stacking}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": _SOURCE,
                "expr": _with_variables(query),
                "legendFormat": legend,
            }
            for i, (query, legend) in enumerate(panel.queries)
        ],
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        calculation = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"reduceOptions": calculation, "graphMode": "area", "colorMode": "value"}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def text() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text())

"""Metrics: exact values after known events, engine restarts, and memory that adds up."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from radixserve.cache.counters import EVICTED_TOKENS, TENANT_EVICTED_TOKENS, TENANT_KV_BYTES
from radixserve.cache.kvcache import KVCache
from radixserve.declared import Declared, Key
from radixserve.engine.counters import (
    COMPUTED,
    GENERATED_TOKENS,
    PREEMPTIONS,
    PROMPT_TOKENS,
    RUNNING,
    STEP_FAULTS,
    STEP_SECONDS,
    STEP_SEQUENCES,
    STEP_TOKENS,
    STEPS,
    TENANT_REQUESTS,
    WAITING,
)
from radixserve.front.supervisor import Cause
from radixserve.metrics import Metrics, RequestRecord
from radixserve.metrics_table import ENGINE, METRICS, WINDOW_SECONDS
from radixserve.prefix import Prefix
from radixserve.step import EngineInfo, EngineStats, FaultKind
from radixserve.tiers.counters import TIER_BYTES
from tests.engine.harness import request
from tests.tiers.parts import Tiered

INFO = EngineInfo(
    vocab_size=100,
    context_length=64,
    eos_token_ids=(2,),
    max_request_tokens=64,
    num_slots=100,
    pool_slots=100,
    slot_bytes=1000,
    device="cpu",
    dtype="float32",
    checkpoint_dtype="float32",
    kv_dtype="float32",
    attention="numba",
    exact=True,
)


class Page:
    """A rendered page, parsed."""

    def __init__(self, page: bytes) -> None:
        self.families = {
            family.name: family for family in text_string_to_metric_families(page.decode())
        }

    def __getitem__(self, series: str) -> float:
        """The value of `name` or `name{label="value"}`."""
        name, _, labels = series.partition("{")
        wanted = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found = [
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and sample.labels == wanted
        ]
        assert len(found) == 1, f"{series}: {found}"
        return float(found[0])


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def rendered(
    metrics: Metrics, stats: EngineStats | None = None, info: EngineInfo | None = INFO
) -> Page:
    return Page(metrics.render(stats or EngineStats(), info))


def step(seconds: float, tokens: int, sequences: int) -> dict[Key, list[float]]:
    return {
        STEP_SECONDS.key(): [seconds],
        STEP_TOKENS.key(): [tokens],
        STEP_SEQUENCES.key(): [sequences],
    }


def busy(model: str = "tiny") -> Metrics:
    """Metrics in which every declared one has a value."""
    metrics = Metrics(model)
    metrics.record(
        RequestRecord("chat.completions", "stop", 100, 90, 3, 0.01, 0.02, 0.5, [0.1, 0.2])
    )
    metrics.observe_steps(
        EngineStats(
            numbers={
                STEPS.key(): 1,
                GENERATED_TOKENS.key(): 1,
                TENANT_KV_BYTES.key("acme"): 8,
                TENANT_EVICTED_TOKENS.key("acme", "others"): 2,
            },
            observed=step(0.5, 8, 2),
        )
    )
    return metrics


def test_every_declared_metric_is_on_the_page_and_no_other() -> None:
    page = rendered(busy())
    names = {name for name in page.families if not name.startswith("process_")}
    declared = {
        each.name.removesuffix("_total") if each.kind == "counter" else each.name
        for each in METRICS
    }
    assert names == declared
    assert [each.name for each in METRICS if not each.help or not each.unit] == []
    for each in METRICS:
        family = page.families[
            each.name.removesuffix("_total") if each.kind == "counter" else each.name
        ]
        assert family.type == each.kind
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(each.labels) or not family.samples  # there is no tenant here


def test_names_follow_the_conventions() -> None:
    for each in METRICS:
        assert each.name.startswith("radixserve_")
        assert each.name.endswith("_total") == (each.kind == "counter"), each.name
        if each.unit in ("seconds", "bytes", "ratio"):
            assert each.name.removesuffix("_total").endswith(f"_{each.unit}"), each.name


@pytest.mark.parametrize(
    "each",
    [each for each in METRICS if each.kind == "counter" and each.values],
    ids=lambda e: e.name,
)
def test_every_series_of_a_counter_is_there_at_zero_from_the_start(each: Declared) -> None:
    assert len(each.values) == len(each.labels)
    found = {
        tuple(sample.labels[label] for label in each.labels): sample.value
        for sample in rendered(Metrics()).families[each.name.removesuffix("_total")].samples
    }
    assert found == dict.fromkeys(each.series(), 0.0)


def test_the_known_values_are_those_that_are_counted() -> None:
    known = {each.name: each.values for each in METRICS}
    assert known["radixserve_step_faults_total"] == (get_args(FaultKind),)
    assert known["radixserve_requests_total"] == (
        ("chat", "completions", "responses", "messages", "warm"),
        ("stop", "length", "tool_calls", "abort", "error", "rejected"),
    )


def test_a_request_is_counted_once_in_everything_it_touches() -> None:
    metrics = Metrics()
    metrics.record(
        RequestRecord("chat.completions", "length", 100, 90, 3, 0.004, 0.02, 0.52, [0.1, 0.4])
    )
    page = rendered(metrics)
    assert page['radixserve_requests_total{endpoint="chat.completions",outcome="length"}'] == 1
    assert page["radixserve_request_prompt_tokens_sum"] == 100
    assert page["radixserve_request_cached_tokens_sum"] == 90
    assert page["radixserve_request_generated_tokens_sum"] == 3
    assert page["radixserve_queue_seconds_sum"] == 0.004
    assert page['radixserve_time_to_first_token_seconds_sum{prefix="warm"}'] == 0.02
    assert page["radixserve_e2e_seconds_sum"] == 0.52
    assert page["radixserve_inter_token_seconds_sum"] == 0.5
    assert page["radixserve_inter_token_seconds_count"] == 2
    assert page['radixserve_time_to_first_token_seconds_bucket{le="0.01",prefix="warm"}'] == 0
    assert page['radixserve_time_to_first_token_seconds_bucket{le="0.02",prefix="warm"}'] == 1


def test_times_that_never_came_to_be_are_not_observed_as_zero() -> None:
    metrics = Metrics()
    metrics.record(RequestRecord("completions", "abort", 7))
    page = rendered(metrics)
    assert page['radixserve_requests_total{endpoint="completions",outcome="abort"}'] == 1
    assert page['radixserve_time_to_first_token_seconds_count{prefix="cold"}'] == 0
    assert page["radixserve_queue_seconds_count"] == 0
    assert page["radixserve_request_prompt_tokens_count"] == 1


def test_a_rejected_request_changes_no_distribution() -> None:
    metrics = Metrics()
    metrics.record(RequestRecord("completions", "rejected", e2e_seconds=0.001))
    page = rendered(metrics)
    assert page['radixserve_requests_total{endpoint="completions",outcome="rejected"}'] == 1
    assert page["radixserve_e2e_seconds_count"] == 0
    assert page["radixserve_request_prompt_tokens_count"] == 0


def totals(steps: int, computed: int, cached: int) -> EngineStats:
    return EngineStats(
        numbers={
            STEPS.key(): steps,
            PROMPT_TOKENS.key(COMPUTED): computed,
            PROMPT_TOKENS.key("device"): cached,
            GENERATED_TOKENS.key(): 2 * steps,
            EVICTED_TOKENS.key(): 3 * steps,
            PREEMPTIONS.key(): steps,
        },
        observed=step(0.25, 7, 3),
    )


def test_reports_enter_as_differences() -> None:
    metrics = Metrics()
    for report in (totals(1, 10, 0), totals(2, 15, 85), totals(2, 15, 85)):
        metrics.observe_steps(report)
    page = rendered(metrics)
    assert page['radixserve_prompt_tokens_total{source="computed"}'] == 15
    assert page['radixserve_prompt_tokens_total{source="device"}'] == 85
    assert page["radixserve_generated_tokens_total"] == 4
    assert page["radixserve_evicted_tokens_total"] == 6
    assert page["radixserve_preemptions_total"] == 2
    assert page["radixserve_steps_total"] == 2
    assert page["radixserve_step_seconds_sum"] == 0.75
    assert page["radixserve_step_tokens_sum"] == 21
    assert page["radixserve_step_sequences_sum"] == 9


def test_one_report_object_that_the_sender_goes_on_changing_is_counted_right() -> None:
    metrics, report = Metrics(), totals(1, 10, 0)
    metrics.observe_steps(report)
    report.numbers.update({STEPS.key(): 2, PROMPT_TOKENS.key(COMPUTED): 30})
    metrics.observe_steps(report)
    assert rendered(metrics)['radixserve_prompt_tokens_total{source="computed"}'] == 30


@pytest.mark.parametrize("told", [True, False])
def test_no_counter_falls_or_jumps_when_the_engine_starts_anew(told: bool) -> None:
    metrics = Metrics()
    metrics.observe_steps(totals(5, 100, 50))
    if told:
        metrics.engine_restarted("crash")
    metrics.observe_steps(totals(1, 10, 1))
    page = rendered(metrics)
    assert page['radixserve_prompt_tokens_total{source="computed"}'] == 110
    assert page['radixserve_prompt_tokens_total{source="device"}'] == 51
    assert page["radixserve_steps_total"] == 6
    assert page['radixserve_engine_restarts_total{cause="crash"}'] == int(told)
    assert page['radixserve_engine_restarts_total{cause="hang"}'] == 0


def test_restarts_are_counted_by_cause() -> None:
    metrics = Metrics()
    for cause in ("hang", "crash", "hang"):
        metrics.engine_restarted(cause)
    page = rendered(metrics)
    counted = {
        cause: page[f'radixserve_engine_restarts_total{{cause="{cause}"}}']
        for cause in get_args(Cause)
    }
    assert counted == {"crash": 1, "hang": 2}


def test_a_restarted_engine_that_already_did_more_than_the_old_one_is_counted_whole() -> None:
    metrics = Metrics()
    metrics.observe_steps(totals(1, 10, 1))
    metrics.engine_restarted("crash")
    metrics.observe_steps(totals(5, 100, 50))
    assert rendered(metrics)['radixserve_prompt_tokens_total{source="computed"}'] == 110


def faults(steps: int, **kinds: int) -> EngineStats:
    counted = {STEP_FAULTS.key(kind): count for kind, count in kinds.items()}
    return EngineStats(numbers={STEPS.key(): steps, **counted})


def test_step_faults_are_counted_by_kind_and_are_there_from_the_start() -> None:
    metrics = Metrics()
    assert rendered(metrics)['radixserve_step_faults_total{kind="exception"}'] == 0
    metrics.observe_steps(faults(1, exception=2, out_of_memory=1))
    metrics.observe_steps(faults(2, exception=2, out_of_memory=3, not_finite=1))
    metrics.engine_restarted("crash")
    metrics.observe_steps(faults(0, exception=1))
    page = rendered(metrics)
    counted = {
        kind: page[f'radixserve_step_faults_total{{kind="{kind}"}}'] for kind in get_args(FaultKind)
    }
    assert counted == {"exception": 3, "out_of_memory": 3, "not_finite": 1}


def test_resumptions_are_counted() -> None:
    metrics = Metrics()
    metrics.request_resumed()
    metrics.request_resumed()
    assert rendered(metrics)["radixserve_requests_resumed_total"] == 2


def test_the_hit_ratio_forgets_what_is_older_than_the_window() -> None:
    clock = Clock()
    metrics = Metrics(clock=clock)
    assert math.isnan(rendered(metrics)["radixserve_hit_ratio"])
    metrics.observe_steps(totals(1, 100, 0))
    assert rendered(metrics)["radixserve_hit_ratio"] == 0
    clock.now += WINDOW_SECONDS - 1
    metrics.observe_steps(totals(2, 200, 300))
    assert rendered(metrics)["radixserve_hit_ratio"] == 0.6
    clock.now += 1
    assert rendered(metrics)["radixserve_hit_ratio"] == 0.75
    clock.now += WINDOW_SECONDS
    assert math.isnan(rendered(metrics)["radixserve_hit_ratio"])


def kv(page: Page) -> dict[str, float]:
    states = ("budget", "free", "used", "leased", "evictable", "cached")
    return {state: page[f'radixserve_kv_bytes{{state="{state}"}}'] for state in states}


def test_kv_bytes_add_up() -> None:
    cache = KVCache(100, slot_bytes=1000)
    with cache.hold(Prefix.of("public", [])) as lease:
        lease.grow(60)
        lease.publish(Prefix.of("public", range(50)))
    held = cache.hold(Prefix.of("public", range(15)))
    held.grow(25)
    stats = EngineStats(numbers={RUNNING.key(): 2, WAITING.key(): 3, **cache.numbers()})
    page = rendered(Metrics(), stats)
    assert kv(page) == {
        "budget": 100_000,
        "free": 40_000,
        "used": 60_000,
        "leased": 25_000,
        "evictable": 35_000,
        "cached": 50_000,
    }
    assert page["radixserve_requests_running"] == 2
    assert page["radixserve_requests_waiting"] == 3
    assert page["radixserve_tree_nodes"] == 2


def test_everything_is_free_before_the_first_report_and_nothing_is_there_before_the_model() -> None:
    assert kv(rendered(Metrics()))["free"] == 100_000
    assert kv(rendered(Metrics()))["used"] == 0
    waiting = EngineStats(numbers={WAITING.key(): 3})  # outside an engine that has not reported
    assert kv(rendered(Metrics(), waiting))["budget"] == 100_000
    assert set(kv(rendered(Metrics(), info=None)).values()) == {0}


def test_the_engine_is_up_when_the_caller_says_so_or_a_model_is_loaded() -> None:
    metrics = Metrics()
    assert rendered(metrics)["radixserve_engine_up"] == 1
    assert rendered(metrics, info=None)["radixserve_engine_up"] == 0
    assert Page(metrics.render(EngineStats(), INFO, up=False))["radixserve_engine_up"] == 0


def test_a_fallback_shows() -> None:
    assert rendered(Metrics())["radixserve_engine_fallback"] == 0
    slow = msgspec.structs.replace(INFO, fallback_reason="the kernel does not compile")
    assert rendered(Metrics(), info=slow)["radixserve_engine_fallback"] == 1


def test_there_is_one_model_info_even_when_the_engine_comes_back_different() -> None:
    metrics = Metrics("Org/Model")
    rendered(metrics)
    page = rendered(metrics, info=msgspec.structs.replace(INFO, attention="torch", exact=False))
    labels = (
        'attention="torch",cache="true",device="cpu",dtype="float32",'
        'exact="false",model="Org/Model"'
    )
    assert page[f"radixserve_model_info{{{labels}}}"] == 1
    assert len(page.families["radixserve_model_info"].samples) == 1


def test_two_servers_in_one_process_do_not_share_counts() -> None:
    one, other = busy(), Metrics()
    assert rendered(one)["radixserve_steps_total"] == 1
    assert rendered(other)["radixserve_steps_total"] == 0


def test_series_of_a_gauge_that_are_reported_no_more_are_gone_or_0() -> None:
    metrics = Metrics()
    used = EngineStats(numbers={TIER_BYTES.key("host", "used"): 5, TIER_BYTES.key("shelf", "x"): 1})
    page = rendered(metrics, used)
    assert page['radixserve_tier_bytes{tier="host",state="used"}'] == 5
    assert page['radixserve_tier_bytes{tier="disk",state="used"}'] == 0
    assert page['radixserve_tier_bytes{tier="shelf",state="x"}'] == 1
    page = rendered(metrics)
    assert page['radixserve_tier_bytes{tier="host",state="used"}'] == 0
    assert len(page.families["radixserve_tier_bytes"].samples) == 4


def test_the_engine_reports_what_is_declared_and_nothing_else(tmp_path: Path) -> None:
    engine = Tiered(64, host_slots=64, folder=tmp_path / "s")
    engine.ask(request("a", [1, 2, 3]))
    declared = {each.name: each for each in ENGINE}
    stats = engine.core.stats()
    engine.close()
    for name, *labels in (*stats.numbers, *stats.observed):
        known = set(declared[name].series()) or {tuple(labels)}  # tenants are not known before
        assert tuple(labels) in known, name
    reported = {key[0] for key in (*stats.numbers, *stats.observed)}
    # no tenant has K/V of its own, and none has a request any more
    of_tenants = {TENANT_KV_BYTES.name, TENANT_EVICTED_TOKENS.name, TENANT_REQUESTS.name}
    assert declared.keys() - reported == {STEP_FAULTS.name} | of_tenants  # none happened

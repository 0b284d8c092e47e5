"""The names of other servers: the same numbers, and those names that gateways read."""

from __future__ import annotations

import pytest

from radixserve.cache.counters import KV_BYTES
from radixserve.engine.counters import COMPUTED, PROMPT_TOKENS
from radixserve.metrics import Metrics, RequestRecord
from radixserve.step import EngineInfo, EngineStats
from tests.fakes import INFO
from tests.test_metrics import Page

# What the endpoint picker of the Gateway API inference extension reads.
GATEWAY = (
    "vllm:num_requests_waiting",
    "vllm:num_requests_running",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
)
MINE = '{engine="0",model_name="tiny"}'


def page(info: EngineInfo | None = INFO) -> Page:
    metrics = Metrics("tiny", aliases="vllm")
    metrics.record(RequestRecord("chat", "tool_calls", 100, 90, 3, 0.01, 0.02, 0.5, [0.1, 0.2]))
    metrics.record(RequestRecord("chat", "stop", 100, 0, 3, 0.01, 0.2, 0.5, [0.1]))
    metrics.record(RequestRecord("chat", "rejected"))
    numbers = {
        PROMPT_TOKENS.key(COMPUTED): 110.0,
        PROMPT_TOKENS.key("host"): 60.0,
        PROMPT_TOKENS.key("device"): 30.0,
        KV_BYTES.key("budget"): 1000.0,
        KV_BYTES.key("leased"): 250.0,
        KV_BYTES.key("used"): 900.0,
    }
    stats = EngineStats(numbers=numbers)
    metrics.observe_steps(stats)
    return Page(metrics.render(stats, info))


def test_gateways_find_what_they_ask_for() -> None:
    assert set(GATEWAY) <= set(page().families)
    blocks = f'{{block_size="16",engine="0",model_name="tiny",num_gpu_blocks="{4096 // 16}"}}'
    assert page()["vllm:cache_config_info" + blocks] == 1


def test_cached_tokens_that_nobody_holds_count_as_free() -> None:
    assert page()["vllm:kv_cache_usage_perc" + MINE] == 0.25
    assert page()["vllm:gpu_cache_usage_perc" + MINE] == 0.25


def test_counts_are_added_up_over_labels_that_the_other_names_lack() -> None:
    found = page()
    assert found["vllm:prefix_cache_queries_total" + MINE] == 200
    assert found["vllm:prefix_cache_hits_total" + MINE] == 90
    assert found["vllm:time_to_first_token_seconds_count" + MINE] == 2
    assert found["vllm:time_to_first_token_seconds_sum" + MINE] == pytest.approx(0.22)
    bucket = 'vllm:time_to_first_token_seconds_bucket{engine="0",le="0.02",model_name="tiny"}'
    assert found[bucket] == 1
    stop = '{engine="0",finished_reason="stop",model_name="tiny"}'
    assert found["vllm:request_success_total" + stop] == 2


def test_the_size_of_the_cache_is_not_told_before_it_is_known() -> None:
    assert "vllm:cache_config_info" not in page(info=None).families


def test_without_the_setting_there_are_our_names_only() -> None:
    assert b"vllm" not in Metrics("tiny").render(EngineStats(), INFO)

"""The numbers of the metrics page once more, under the names that vLLM gives them: gateways and
autoscalers that were made for it read those.

A name is given only where the meaning is the same. `kv_cache_usage_perc` is the share of the budget
that running requests hold, because vLLM counts cached blocks that nobody holds as free, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from radixserve.step import EngineInfo

BLOCK_TOKENS: Final = 16
"""The cache compares single tokens, so every size is true; this is vLLM's own default. Gateways
hash prompts in blocks of this many tokens.
"""

_SAME: Final = {
    "radixserve_requests_running": "num_requests_running",
    "radixserve_requests_waiting": "num_requests_waiting",
    "radixserve_preemptions": "num_preemptions",
    "radixserve_generated_tokens": "generation_tokens",
    "radixserve_request_prompt_tokens": "request_prompt_tokens",
    "radixserve_request_generated_tokens": "request_generation_tokens",
    "radixserve_time_to_first_token_seconds": "time_to_first_token_seconds",
    "radixserve_inter_token_seconds": "inter_token_latency_seconds",
    "radixserve_queue_seconds": "request_queue_time_seconds",
    "radixserve_e2e_seconds": "e2e_request_latency_seconds",
    "radixserve_step_tokens": "iteration_tokens_total",
}
_REASONS: Final = {"stop": "stop", "tool_calls": "stop", "length": "length", "abort": "abort"}


class VllmNames(Collector):
    """A page to be put behind the page of `registry`."""

    def __init__(self, registry: CollectorRegistry, model: str, info: EngineInfo | None) -> None:
        self._registry, self._info = registry, info
        self._labels = {"model_name": model, "engine": "0"}

    def collect(self) -> Iterator[Metric]:
        """The metrics under their other names."""
        families = {family.name: family for family in self._registry.collect()}
        for name, other in _SAME.items():
            if name in families:
                yield self._renamed(families[name], other)
        yield from self._usage(families["radixserve_kv_bytes"])
        yield from self._prompts(families["radixserve_prompt_tokens"])
        yield self._successes(families["radixserve_requests"])
        if self._info is not None:
            yield self._cache_config(self._info)

    def _renamed(self, family: Metric, name: str) -> Metric:
        """`family` without its own labels, over which the values are added up."""
        sums: dict[tuple[str, str | None], float] = {}
        for each in family.samples:
            key = each.name.removeprefix(family.name), each.labels.get("le")
            sums[key] = sums.get(key, 0.0) + each.value
        metric = Metric(f"vllm:{name}", family.documentation, family.type)
        for (suffix, le), value in sums.items():
            bound = {} if le is None else {"le": le}
            metric.samples.append(Sample(metric.name + suffix, self._labels | bound, value))
        return metric

    def _usage(self, family: Metric) -> Iterator[Metric]:
        """By its name and by the one that it had before."""
        bytes_of = {each.labels["state"]: each.value for each in family.samples}
        budget = bytes_of.get("budget", 0.0)
        share = bytes_of.get("leased", 0.0) / budget if budget else 0.0
        for name in ("kv_cache_usage_perc", "gpu_cache_usage_perc"):
            yield self._single(
                "gauge", name, "Share of the budget that running requests hold", share
            )

    def _prompts(self, family: Metric) -> Iterator[Metric]:
        tokens = {each.labels["source"]: each.value for each in family.samples}
        total, hits = sum(tokens.values()), sum(tokens.values()) - tokens.get("computed", 0.0)
        for name, value in (
            ("prompt_tokens", total),
            ("prefix_cache_queries", total),
            ("prefix_cache_hits", hits),
            ("prompt_tokens_cached", hits),
        ):
            yield self._single("counter", name, family.documentation, value)

    def _successes(self, family: Metric) -> Metric:
        counts = dict.fromkeys(_REASONS.values(), 0.0)
        for each in family.samples:
            reason = _REASONS.get(each.labels["outcome"])
            if reason is not None:
                counts[reason] += each.value
        metric = Metric("vllm:request_success", family.documentation, "counter")
        for reason, count in counts.items():
            labels = self._labels | {"finished_reason": reason}
            metric.samples.append(Sample("vllm:request_success_total", labels, count))
        return metric

    def _cache_config(self, info: EngineInfo) -> Metric:
        blocks = {
            "block_size": str(BLOCK_TOKENS),
            "num_gpu_blocks": str(info.num_slots // BLOCK_TOKENS),
        }
        return self._single("gauge", "cache_config_info", "The size of the cache", 1.0, blocks)

    def _single(
        self, kind: str, name: str, text: str, value: float, more: Mapping[str, str] | None = None
    ) -> Metric:
        metric = Metric(f"vllm:{name}", text, kind)
        suffix = "_total" if kind == "counter" else ""
        labels = {**self._labels, **(more or {})}
        metric.samples.append(Sample(metric.name + suffix, labels, value))
        return metric

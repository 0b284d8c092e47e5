"""What a collector receives from the real application over a fake engine, decoded from the wire."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from prometheus_client import CollectorRegistry

from radixserve.api.address import take_address
from radixserve.api.app import ApiSettings, make_app
from radixserve.api.context import Api
from radixserve.api.listen import Listener
from radixserve.config import Settings
from radixserve.front.stream import Stream
from radixserve.metrics import Metrics
from radixserve.step import TierLoad
from radixserve.telemetry.destination import destination
from radixserve.telemetry.sender import Telemetry
from tests.fakes import FakeEngine, byte_tokenizer
from tests.telemetry.collector import Collector, attributes, collecting

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 4}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as it:
        yield it


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")


class Traced:
    """A server that sends to a collector."""

    def __init__(self, engine: FakeEngine, session: aiohttp.ClientSession, url: str) -> None:
        self.engine, self._session, self._url = engine, session, url

    async def post(self, headers: dict[str, str] | None = None, **more: object) -> int:
        url, body = self._url + "/v1/chat/completions", {**BODY, **more}
        async with self._session.post(url, json=body, headers=headers) as answer:
            await answer.read()
            return answer.status


@asynccontextmanager
async def serving(collector: Collector, **settings: object) -> AsyncIterator[Traced]:
    engine, metrics = FakeEngine(), Metrics("tiny")
    engine.num_cached = 5
    api = Api.of(engine, byte_tokenizer(), metrics, ApiSettings(), ("tiny",))
    to = destination(Settings(otlp_endpoint=collector.url, **settings), {})  # type: ignore[arg-type]
    assert to is not None

    def snapshot() -> CollectorRegistry:
        metrics.take_state(engine.stats, engine.info)
        return metrics.registry

    telemetry = Telemetry(replace(to, metrics_seconds=0.1), snapshot)
    telemetry.start()
    address = take_address(Settings(port=0))
    listener = Listener(make_app(replace(api, traces=telemetry.traces)), address)
    await listener.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Traced(engine, session, address.url)
    finally:
        engine.go_on.set()
        await listener.close()
        await telemetry.close()


async def test_a_request_is_one_trace_with_its_phases(collector: Collector) -> None:
    async with serving(collector) as server:
        assert await server.post() == 200
    (root,) = collector.wait_for_roots(1)
    assert root.name == "chat tiny"
    found = attributes(root)
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.usage.cache_read.input_tokens"] == 5
    assert found["gen_ai.usage.output_tokens"] == 4
    assert found["gen_ai.response.finish_reasons"] == ["length"]
    share = 5 / found["gen_ai.usage.input_tokens"]
    assert found["radixserve.cached_share"] == pytest.approx(share)
    parts = collector.children(root)
    assert set(parts) == {"tokenise", "queue", "prefill", "decode", "detokenise"}
    assert set(collector.children(parts["queue"])) == {"lookup"}
    assert parts["tokenise"].start_time_unix_nano == root.start_time_unix_nano
    for before, after in (("queue", "prefill"), ("prefill", "decode")):
        assert parts[before].end_time_unix_nano == parts[after].start_time_unix_nano
    for part in parts.values():
        assert part.trace_id == root.trace_id
        assert root.start_time_unix_nano <= part.start_time_unix_nano
        assert part.start_time_unix_nano <= part.end_time_unix_nano <= root.end_time_unix_nano


async def test_a_load_that_was_given_up_says_why(collector: Collector) -> None:
    async with serving(collector) as server:
        server.engine.loads = (TierLoad("disk", 0.0, 0.001, 0, "late"),)
        await server.post()
    (root,) = collector.wait_for_roots(1)
    load = collector.children(collector.children(root)["queue"])["load disk"]
    found = attributes(load)
    assert (found["radixserve.given_up"], found["radixserve.tokens"]) == ("late", 0)


async def test_preemptions_and_what_another_engine_went_on_with_are_events(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FakeEngine.submit

    def submit(engine: FakeEngine, stream: Stream) -> None:
        real(engine, stream)
        stream.resumed_at.append(stream.request.arrived + 0.003)

    monkeypatch.setattr(FakeEngine, "submit", submit)
    async with serving(collector) as server:
        server.engine.preempted = (0.001, 0.002)
        await server.post()
    (root,) = collector.wait_for_roots(1)
    submitted = collector.children(root)["queue"].start_time_unix_nano
    told = [(each.name, round((each.time_unix_nano - submitted) / 1e6)) for each in root.events]
    assert told == [("preempted", 1), ("preempted", 2), ("resumed", 3)]
    assert attributes(root.events[0]) == {"radixserve.choice": 0}
    found = attributes(root)
    assert (found["radixserve.times_preempted"], found["radixserve.times_resumed"]) == (2, 1)


async def test_the_trace_of_the_client_goes_on(collector: Collector) -> None:
    given = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=abc"}
    async with serving(collector, trace_ratio=0.0) as server:
        await server.post(headers=given)
    (root,) = collector.wait_for_roots(1)
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    assert root.trace_state == "vendor=abc"


async def test_a_client_may_decide_against_a_trace_and_a_bad_header_is_passed_over(
    collector: Collector,
) -> None:
    async with serving(collector) as server:
        await server.post(headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        await server.post(headers={"traceparent": "00-nonsense", "tracestate": "a" * 2000})
    (root,) = collector.wait_for_roots(1)
    assert root.trace_id.hex() != TRACE
    assert root.parent_span_id == b""


async def test_the_ratio_says_how_many_are_traced(collector: Collector) -> None:
    async with serving(collector, trace_ratio=0.0) as server:
        await server.post()
    assert collector.spans() == []


async def test_every_choice_has_its_phases_up_to_a_bound(collector: Collector) -> None:
    async with serving(collector) as server:
        assert await server.post(n=16) == 200
    (root,) = collector.wait_for_roots(1)
    assert attributes(root)["gen_ai.request.choice.count"] == 16
    below = [span for span in collector.spans() if span.parent_span_id == root.span_id]
    assert [span.name for span in below].count("decode") == 8


async def test_failures_name_their_code(collector: Collector) -> None:
    async with serving(collector) as server:
        assert await server.post(temperature=-1) == 400
        server.engine.fail_at = 1
        assert await server.post() == 500
    refused, failed = collector.wait_for_roots(2)
    assert refused.status.code == failed.status.code == Status.STATUS_CODE_ERROR
    assert attributes(refused)["error.type"] == "decimal_below_min_value"
    assert attributes(failed)["error.type"] == "generation_failed"
    assert attributes(failed)["radixserve.outcome"] == "error"


async def test_a_request_that_its_client_leaves_shows_how_far_it_came(
    collector: Collector,
) -> None:
    async with serving(collector) as server:
        server.engine.hold_at = 0
        leaving = asyncio.create_task(server.post())
        await server.engine.held.wait()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await asyncio.sleep(0.1)
    (root,) = collector.wait_for_roots(1)
    assert attributes(root)["radixserve.outcome"] == "abort"
    assert set(collector.children(root)) == {"tokenise", "unanswered"}


@pytest.mark.parametrize(("status", "seconds"), [(500, 0.0), (503, 0.0), (200, 30.0)])
async def test_a_collector_that_fails_or_hangs_costs_requests_nothing(
    collector: Collector, caplog: pytest.LogCaptureFixture, status: int, seconds: float
) -> None:
    collector.status, collector.seconds = status, seconds
    with caplog.at_level(logging.INFO):
        async with serving(collector) as server:
            for _ in range(20):
                assert await asyncio.wait_for(server.post(), 5) == 200
            while not collector.asked:
                await asyncio.sleep(0.02)
            closing = time.monotonic()
        assert time.monotonic() - closing < 10
    assert sum("takes no traces" in each.message for each in caplog.records) <= 1


async def test_what_was_lost_is_told_once_and_so_is_the_recovery(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.status = 400
    with caplog.at_level(logging.INFO):
        async with serving(collector) as server:
            while "takes no traces" not in caplog.text:
                await server.post()
            collector.status = 200
            while "takes traces again" not in caplog.text:
                await server.post()
    assert caplog.text.count("takes no traces") == 1


async def test_metrics_are_those_of_the_page(collector: Collector) -> None:
    async with serving(collector) as server:
        await server.post()
    last = collector.metrics[-1].resource_metrics[0]
    assert attributes(last.resource)["service.name"] == "radixserve"
    found = {each.name: each for each in last.scope_metrics[0].metrics}
    ended = {
        (attributes(point)["endpoint"], attributes(point)["outcome"]): point.as_double
        for point in found["radixserve_requests"].sum.data_points
    }
    assert ended["chat", "length"] == 1
    assert sum(ended.values()) == 1
    (cached,) = found["radixserve_request_cached_tokens"].histogram.data_points
    assert (cached.count, cached.sum) == (1, 5)
    assert sum(cached.bucket_counts) == 1
    assert cached.bucket_counts[list(cached.explicit_bounds).index(8)] == 1
    assert found["radixserve_kv_bytes"].gauge.data_points
    assert found["radixserve_e2e_seconds"].unit == "s"
    assert not found["radixserve_hit_ratio"].gauge.data_points  # it is not a number yet

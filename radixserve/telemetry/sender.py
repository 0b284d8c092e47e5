"""Sends traces and metrics to a collector, beside the event loop.

A collector that is slow or down costs no request anything: finished spans wait in a bounded queue,
and of the metrics the newest state only; threads of their own send both. What finds no place is
dropped. The log tells once that a collector does not answer, and once that it answers again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from prometheus_client.registry import Collector

from radixserve import __version__
from radixserve.telemetry.bounded import session
from radixserve.telemetry.destination import Destination
from radixserve.telemetry.otlp_metrics import metrics_data
from radixserve.telemetry.spans import Traces

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 2.0  # for what is still to be sent when the server ends


class Telemetry:
    """What is sent, from `start` to `close`."""

    def __init__(self, to: Destination, snapshot: Callable[[], Collector]) -> None:
        """`snapshot` gives the metrics with their values now; it is called on the event loop."""
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # `_Told` says it once
        resource = _resource()
        self._spans = _TraceSender(to, resource) if to.traces else None
        self._metrics = _MetricsSender(to, resource, snapshot) if to.metrics else None

    @property
    def traces(self) -> Traces | None:
        """What makes traces; None if only metrics are sent."""
        return self._spans.traces if self._spans is not None else None

    def start(self) -> None:
        """Report metrics from now on; needs a running event loop."""
        if self._metrics is not None:
            self._metrics.start()

    async def close(self) -> None:
        """Send what is left, for at most `_CLOSE_SECONDS`."""
        if self._metrics is not None:
            self._metrics.stop()
        sent, loop = asyncio.Event(), asyncio.get_running_loop()

        def end() -> None:
            for each in (self._spans, self._metrics):
                if each is not None:
                    each.end()
            with contextlib.suppress(RuntimeError):  # the loop has not waited
                loop.call_soon_threadsafe(sent.set)

        threading.Thread(target=end, daemon=True).start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(sent.wait(), _CLOSE_SECONDS)


def _resource() -> Resource:
    """Who sends; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win."""
    own = Resource({"service.name": "radixserve", "service.version": __version__})
    given = Resource.create()
    if str(given.attributes.get("service.name", "")).startswith("unknown_service"):
        return given.merge(own)
    return own.merge(given)


class _Told:
    """Tells the log when a collector stops or begins to take what it is sent."""

    def __init__(self, what: str) -> None:
        self._what, self._takes = what, True

    def note(self, takes: bool) -> None:
        if takes != self._takes:
            self._takes = takes
            if takes:
                log.info("the OpenTelemetry collector takes %s again", self._what)
            else:
                log.warning("the OpenTelemetry collector takes no %s; they are lost", self._what)


class _SpanExporter(SpanExporter):
    def __init__(self, inner: SpanExporter) -> None:
        self._inner, self._told = inner, _Told("traces")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        self._told.note(result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


class _TraceSender:
    def __init__(self, to: Destination, resource: Resource) -> None:
        sampler = None if to.sampler_from_variables else ParentBasedTraceIdRatio(to.ratio)
        self._provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
        exporter = _SpanExporter(OTLPSpanExporter(to.traces_url, session=session()))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.traces = Traces(self._provider)

    def end(self) -> None:
        """Send what waits; may take long."""
        self._provider.shutdown()


class _MetricsSender:
    def __init__(
        self, to: Destination, resource: Resource, snapshot: Callable[[], Collector]
    ) -> None:
        self._resource, self._snapshot, self._seconds = resource, snapshot, to.metrics_seconds
        self._exporter = OTLPMetricExporter(to.metrics_url, session=session())
        self._started_ns = time.time_ns()
        self._waiting: queue.Queue[MetricsData | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._reporting: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._thread.start()
        self._reporting = asyncio.create_task(self._report())

    def stop(self) -> None:
        """Report for the last time; on the event loop."""
        assert self._reporting is not None, "it was started"
        self._reporting.cancel()
        self._offer(self._data())

    def end(self) -> None:
        """Send what waits; may take long."""
        self._waiting.put(None)
        self._thread.join()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            self._offer(self._data())

    def _data(self) -> MetricsData:
        return metrics_data(self._snapshot(), self._resource, self._started_ns, time.time_ns())

    def _offer(self, data: MetricsData) -> None:
        """Give the newest state to the thread, in place of one that still waits."""
        with contextlib.suppress(queue.Empty):
            self._waiting.get_nowait()
        self._waiting.put_nowait(data)  # only this thread puts

    def _send(self) -> None:
        told = _Told("metrics")
        while (data := self._waiting.get()) is not None:
            told.note(self._exporter.export(data) is MetricExportResult.SUCCESS)
        self._exporter.shutdown()

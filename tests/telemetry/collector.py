"""A small OpenTelemetry collector: takes OTLP over HTTP and decodes its protobuf."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector:
    """What has arrived. While `status` is none of 200 everything is refused."""

    url: str = ""
    status: int = 200
    seconds: float = 0.0  # that an answer takes
    answer: bytes = b""
    traces: list[ExportTraceServiceRequest] = field(default_factory=list)
    metrics: list[ExportMetricsServiceRequest] = field(default_factory=list)
    asked: int = 0

    def spans(self) -> list[Span]:
        return [
            span
            for request in list(self.traces)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def wait_for_roots(self, count: int, seconds: float = 20.0) -> list[Span]:
        """The spans of servers, once there are `count` of them, in the order of their start."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            roots = [span for span in self.spans() if span.kind == Span.SPAN_KIND_SERVER]
            if len(roots) >= count:
                return sorted(roots, key=lambda span: span.start_time_unix_nano)
            time.sleep(0.02)
        raise AssertionError(f"{len(self.spans())} spans have arrived")

    def children(self, parent: Span) -> dict[str, Span]:
        """The spans right below `parent` by name."""
        return {each.name: each for each in self.spans() if each.parent_span_id == parent.span_id}


def attributes(span: Any) -> dict[str, Any]:
    """The attributes of a span, a resource or a data point."""
    return {each.key: _value(each.value) for each in span.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a port that the system chooses."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.asked += 1
            time.sleep(collector.seconds)
            if collector.status == 200 and self.path == "/v1/traces":
                collector.traces.append(ExportTraceServiceRequest.FromString(body))
            elif collector.status == 200 and self.path == "/v1/metrics":
                collector.metrics.append(ExportMetricsServiceRequest.FromString(body))
            with contextlib.suppress(ConnectionError):
                self.send_response(collector.status)
                self.send_header("Content-Length", str(len(collector.answer)))
                self.end_headers()
                self.wfile.write(collector.answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

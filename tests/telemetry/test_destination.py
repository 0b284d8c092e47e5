"""Settings and the standard variables decide together where traces and metrics go."""

from __future__ import annotations

import logging

import pytest

from radixserve.config import Settings
from radixserve.errors import ConfigError
from radixserve.telemetry import destination as module
from radixserve.telemetry.destination import destination

OFF = Settings()
ON = Settings(otlp_endpoint="http://collector:4318/")
VARIABLE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://other:4318"}


def test_nothing_is_sent_unless_somebody_asks() -> None:
    assert destination(OFF, {}) is None
    assert destination(ON, {"OTEL_SDK_DISABLED": "true"}) is None
    neither = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
    assert destination(ON, neither) is None


def test_the_setting_is_an_address_below_which_both_signals_go() -> None:
    to = destination(ON, VARIABLE)
    assert to is not None
    assert to.traces_url == "http://collector:4318/v1/traces"
    assert to.metrics_url == "http://collector:4318/v1/metrics"


def test_a_variable_alone_leaves_the_address_to_the_exporter() -> None:
    to = destination(OFF, VARIABLE)
    assert to is not None
    assert (to.traces, to.metrics, to.traces_url, to.metrics_url) == (True, True, None, None)
    one = destination(OFF, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://other:4318/v1/traces"})
    assert one is not None
    assert (one.traces, one.metrics) == (True, False)


def test_metrics_go_as_often_as_the_variable_says() -> None:
    for given, seconds in (("5000", 5.0), ("soon", 60.0), ("-1", 0.1)):
        to = destination(ON, {"OTEL_METRIC_EXPORT_INTERVAL": given})
        assert to is not None
        assert to.metrics_seconds == seconds


@pytest.mark.parametrize("address", ["collector:4318", "grpc://collector:4317", "http://"])
def test_what_is_no_address_is_refused_by_name(address: str) -> None:
    with pytest.raises(ConfigError, match="otlp_endpoint"):
        destination(Settings(otlp_endpoint=address), {})


def test_without_the_packages_the_setting_is_refused_and_the_variable_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_PACKAGES", ("opentelemetry.not_there",))
    with pytest.raises(ConfigError, match=r"pip install 'radixserve\[otel\]'"):
        destination(ON, {})
    with caplog.at_level(logging.WARNING):
        assert destination(OFF, VARIABLE) is None
    assert "pip install" in caplog.text


def test_grpc_is_not_served(caplog: pytest.LogCaptureFixture) -> None:
    assert destination(OFF, {**VARIABLE, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}) is None
    assert "http/protobuf" in caplog.text

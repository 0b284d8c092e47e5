"""Of a collector's answer only so much is read."""

from __future__ import annotations

import pytest
from requests import RequestException

from radixserve.telemetry import bounded
from tests.telemetry.collector import collecting


def test_a_long_answer_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MOST_BYTES", 99)
    made = bounded.session()
    assert made is not None
    with collecting() as collector, made:
        collector.answer = b"x" * 99
        for _ in range(2):  # on one connection
            assert made.post(collector.url, data=b"").content == collector.answer
        collector.answer = b"x" * 100
        with pytest.raises(RequestException, match="too long"):
            made.post(collector.url, data=b"")


def test_credentials_that_variables_name_are_left_to_the_exporter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER", "mine")
    assert bounded.session() is None

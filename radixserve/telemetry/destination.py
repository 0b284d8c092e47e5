"""Whether and where traces and metrics are sent: from the settings and the standard variables of
OpenTelemetry. Imports nothing of OpenTelemetry, because most servers have none.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from radixserve.config import Settings
from radixserve.errors import ConfigError

log = logging.getLogger(__name__)

_PACKAGES: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_INSTALL: Final = "pip install 'radixserve[otel]'"
_EVERY: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_METRICS_MILLISECONDS: Final = 60_000.0  # what OpenTelemetry prescribes


@dataclass(frozen=True, slots=True)
class Destination:
    """Where each signal goes. An address of None stands for the one in the variables, which the
    exporter reads itself.
    """

    traces: bool
    metrics: bool
    traces_url: str | None
    metrics_url: str | None
    ratio: float  # of the traces that no client has decided about
    sampler_from_variables: bool
    metrics_seconds: float  # between two reports


def destination(settings: Settings, variables: Mapping[str, str]) -> Destination | None:
    """Where to send; None: nowhere. The setting wins over the variables.

    Raises:
        ConfigError: the address is none, or the packages are missing. If only the variables ask,
            which may be meant for other programs, that is a warning.
    """
    base = _checked(settings.otlp_endpoint)
    wanted = {
        signal: _is_wanted(signal, base is not None, variables) for signal in ("traces", "metrics")
    }
    if not any(wanted.values()):
        return None
    reason = _obstacle(base is not None, variables)
    if reason is not None:
        if base is not None:
            raise ConfigError(f"otlp_endpoint: {reason}")
        log.warning("traces and metrics are not sent, although %s... is set: %s", _EVERY, reason)
        return None
    return Destination(
        traces=wanted["traces"],
        metrics=wanted["metrics"],
        traces_url=base and f"{base}/v1/traces",
        metrics_url=base and f"{base}/v1/metrics",
        ratio=settings.trace_ratio,
        sampler_from_variables="OTEL_TRACES_SAMPLER" in variables,
        metrics_seconds=_metrics_seconds(variables),
    )


def _checked(address: str | None) -> str | None:
    """The address without a slash at its end. Raises ConfigError if it is none."""
    if address is None:
        return None
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"otlp_endpoint = {address!r} is not an http:// or https:// address")
    return address.rstrip("/")


def _is_wanted(signal: str, is_set: bool, variables: Mapping[str, str]) -> bool:
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if variables.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp").strip() != "otlp":
        return False
    own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
    return is_set or bool(variables.get(_EVERY) or variables.get(own))


def _obstacle(is_set: bool, variables: Mapping[str, str]) -> str | None:
    """Why nothing can be sent; None if it can."""
    protocol = variables.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    if not is_set and protocol != "http/protobuf":
        return f"the protocol {protocol} is not served, http/protobuf is"
    if not all(_is_installed(package) for package in _PACKAGES):
        return f"the packages of OpenTelemetry are missing: {_INSTALL}"
    return None


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


def _metrics_seconds(variables: Mapping[str, str]) -> float:
    try:
        given = float(variables.get("OTEL_METRIC_EXPORT_INTERVAL", _METRICS_MILLISECONDS))
    except ValueError:
        given = _METRICS_MILLISECONDS
    return max(given, 100.0) / 1000

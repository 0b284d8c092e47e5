"""What a trace needs to know of an HTTP request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Asked:
    """What the HTTP layer knows of a request, whether or not it became a generation."""

    headers: Mapping[str, str]
    request_id: str
    endpoint: str
    model: str  # that answers carry
    arrived: float  # time.monotonic() seconds

"""The seam between the front and whatever generates tokens.

Handlers and tests depend on `EngineClient` only; `engine.client.ProcessEngine` is the real one, tests use a fake.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from radixserve.request import Request
from radixserve.step import EngineInfo, EngineStats, TokenEvent


class EngineClient(Protocol):
    """Takes requests, yields their events."""

    @property
    def info(self) -> EngineInfo | None:
        """None until the model is loaded for the first time."""

    @property
    def stats(self) -> EngineStats:
        """The newest statistics; all zero before the first."""

    @property
    def unready_reason(self) -> str | None:
        """None when requests are taken now; otherwise why not (loading, draining, restarting, stalled)."""

    def submit(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        """The events of `request`, ending with the one whose `finish` is set.

        The request is accepted or refused here and now, before the first event is awaited. Closing the iterator
        early (`aclose()`, or cancellation while it waits) aborts the request in the engine.

        Raises:
            Unavailable: the queue is full, or `unready_reason` is not None.
        """

    def abort(self, request_id: str) -> None:
        """Stop a request; its iterator ends with finish == "abort". Unknown ids are ignored."""

"""The seam between the front and whatever generates tokens.

Handlers and tests depend on `EngineClient` only; `engine.client.ProcessEngine` is the real one,
tests use a fake.
"""

from __future__ import annotations

from typing import Protocol

from radixserve.request import Request
from radixserve.step import EngineInfo, EngineStats, TokenEvent


class EventStream(Protocol):
    """The events of one request, in order; ends after the one whose `finish` is set."""

    def __aiter__(self) -> EventStream:
        """Itself."""

    async def __anext__(self) -> TokenEvent:
        """The next event; a reader that is behind gets several merged into one."""

    async def aclose(self) -> None:
        """Aborts the request in the engine if it still runs. To be called in every case, started or
        not.
        """


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
        """None while the engine works; otherwise why not (loading, restarting, failing, stalled,
        draining, stopped).
        """

    @property
    def refusal_reason(self) -> str | None:
        """None while requests are taken, also those that have to wait for a restart; otherwise why
        not.
        """

    def submit(self, request: Request) -> EventStream:
        """The events of `request`, ending with the one whose `finish` is set.

        The request is accepted or refused here and now, before the first event is awaited. The
        caller closes the stream (`contextlib.aclosing`); closing it early aborts the request in the
        engine.

        Raises:
            Unavailable: the queue is full, or `refusal_reason` is not None.
        """

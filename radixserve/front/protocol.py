"""The interface between the front and an engine that generates tokens.

Handlers and tests depend on `EngineClient` only; `front.client.ProcessEngine` is the real one,
tests use a fake.
"""

from __future__ import annotations

from typing import Protocol

from radixserve.request import Request
from radixserve.step import EngineInfo, EngineStats, TokenEvent


class EventStream(Protocol):
    """The events of one request, in order. It ends after the event whose `finish` is set."""

    def __aiter__(self) -> EventStream:
        """The stream itself."""

    async def __anext__(self) -> TokenEvent:
        """The next event. A reader that is behind gets several events merged into one."""

    async def aclose(self) -> None:
        """Abort the request in the engine if it still runs. The reader has to call this in every
        case, also if it has read nothing.
        """


class EngineClient(Protocol):
    """Takes requests and returns streams of their events."""

    @property
    def info(self) -> EngineInfo | None:
        """Facts about the model; None until it is loaded for the first time."""

    @property
    def stats(self) -> EngineStats:
        """The newest statistics; all zero before the first report."""

    @property
    def unready_reason(self) -> str | None:
        """None while the engine works; otherwise the reason (loading, restarting, failing, stalled,
        draining, stopped).
        """

    @property
    def refusal_reason(self) -> str | None:
        """None while requests are accepted, also those that have to wait for a restart; otherwise
        the reason.
        """

    def submit(self, request: Request) -> EventStream:
        """Submit `request`; returns the stream of its events, which ends with the one whose
        `finish` is set.

        The request is accepted or refused by this call, before the first event is awaited. The
        caller closes the stream (`contextlib.aclosing`); closing it early aborts the request in the
        engine.

        Raises:
            Unavailable: the queue is full, or `refusal_reason` is not None.
        """

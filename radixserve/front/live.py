"""The front's record of the requests that have not ended, and the stream that a handler reads.

Prompt and output so far are kept, so that a new engine can continue where a dead one stopped. Knows
no process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from radixserve.request import Request
from radixserve.step import TokenEvent


@dataclass(slots=True)
class Live:
    """A request, the tokens that have arrived, and the events that the reader has not fetched
    yet.
    """

    request: Request
    output_ids: list[int] = field(default_factory=list)
    pending: TokenEvent | None = None  # events not fetched yet, merged into one
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    started: bool = False
    submitted: bool = False  # to any engine, which may have died since

    def push(self, event: TokenEvent) -> None:
        """Add an event. Events that the reader has not fetched are merged into one, so what waits
        here stays small.
        """
        self.started = True
        self.output_ids += event.token_ids
        self.pending = event if self.pending is None else _merged(self.pending, event)
        self.arrived.set()

    async def fetch(self) -> TokenEvent:
        """The event of everything that arrived since the last call; waits until there is
        something.
        """
        await self.arrived.wait()
        self.arrived.clear()
        event, self.pending = self.pending, None
        assert event is not None, "woken without an event"
        return event


class LiveStream:
    """The `EventStream` of one request; `leave` is called when the reader is done with it."""

    def __init__(self, live: Live, leave: Callable[[Live], None]) -> None:
        self._live = live
        self._leave = leave
        self._ended = False

    def __aiter__(self) -> LiveStream:
        return self

    async def __anext__(self) -> TokenEvent:
        if self._ended:
            raise StopAsyncIteration
        event = await self._live.fetch()
        self._ended = event.finish is not None
        return event

    async def aclose(self) -> None:
        self._ended = True
        self._leave(self._live)


class LiveRequests:
    """All requests that have not ended, by id, and the average time that a request takes."""

    def __init__(self) -> None:
        self.idle = asyncio.Event()  # set while there are none
        self.idle.set()
        self._by_id: dict[str, Live] = {}
        self._service_seconds = 1.0  # moving average of a request's life

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Live]:
        """Iterates over a snapshot, so that the loop may remove requests."""
        return iter(list(self._by_id.values()))

    def __contains__(self, live: Live) -> bool:
        return live.request.id in self._by_id

    def get(self, request_id: str) -> Live | None:
        return self._by_id.get(request_id)

    def add(self, request: Request) -> Live:
        live = self._by_id[request.id] = Live(request)
        self.idle.clear()
        return live

    def remove(self, live: Live) -> None:
        """Forget `live`, which has ended."""
        del self._by_id[live.request.id]
        if live.request.arrived:
            life = time.monotonic() - live.request.arrived
            self._service_seconds += 0.1 * (life - self._service_seconds)
        if not self._by_id:
            self.idle.set()

    @property
    def num_waiting(self) -> int:
        """How many requests have not received anything."""
        return sum(not live.started for live in self._by_id.values())

    def seconds_to_serve(self, at_once: int) -> float:
        """How long serving all of them takes at the recent pace, `at_once` at a time."""
        return len(self) * self._service_seconds / at_once


def _merged(first: TokenEvent, then: TokenEvent) -> TokenEvent:
    """Two consecutive events of one request as one event."""
    first.token_ids = first.token_ids + then.token_ids
    if then.logprobs is not None:
        first.logprobs = (first.logprobs or []) + then.logprobs
    first.finish, first.stop_token_id, first.error = then.finish, then.stop_token_id, then.error
    return first

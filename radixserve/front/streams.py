"""The requests that have not ended, by id, and how long requests take. Knows no process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from radixserve.front.stream import Stream


class Streams:
    """All requests that have not ended, and the average time that a request takes."""

    def __init__(self) -> None:
        self.idle = asyncio.Event()  # set while there are none
        self.idle.set()
        self._by_id: dict[str, Stream] = {}
        self._service_seconds = 1.0  # moving average of a request's life

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Stream]:
        """Iterates over a snapshot, so that the loop may remove requests."""
        return iter(list(self._by_id.values()))

    def __contains__(self, stream: Stream) -> bool:
        return stream.request.id in self._by_id

    def get(self, request_id: str) -> Stream | None:
        """The stream of a request; None if it has ended."""
        return self._by_id.get(request_id)

    def add(self, stream: Stream) -> None:
        """Add a request."""
        self._by_id[stream.request.id] = stream
        self.idle.clear()

    def remove(self, stream: Stream) -> None:
        """Forget a request, which has ended."""
        del self._by_id[stream.request.id]
        if stream.request.arrived:
            life = time.monotonic() - stream.request.arrived
            self._service_seconds += 0.1 * (life - self._service_seconds)
        if not self._by_id:
            self.idle.set()

    @property
    def num_waiting(self) -> int:
        """How many requests have not received anything."""
        return sum(not stream.started for stream in self._by_id.values())

    def seconds_to_serve(self, at_once: int) -> float:
        """How long serving all of them takes at the recent pace, `at_once` at a time."""
        return len(self) * self._service_seconds / at_once

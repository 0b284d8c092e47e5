"""The requests that have not ended, by id. Knows no process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

from radixserve.front.stream import Stream
from radixserve.step import TokenEvent


class Streams:
    """All requests that have not ended.

    Attributes:
        idle: set while there are none.
        waiting: how many requests of each tenant have not received anything; tenants without are
            left out. It is kept and not counted anew, because a flood asks for each refusal.
    """

    def __init__(self) -> None:
        self.idle = asyncio.Event()
        self.idle.set()
        self.waiting: Counter[str] = Counter()
        self._by_id: dict[str, Stream] = {}

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
        """Add a request that has received nothing."""
        self._by_id[stream.request.id] = stream
        self.waiting[stream.request.tenant] += 1
        self.idle.clear()

    def push(self, stream: Stream, event: TokenEvent) -> None:
        """Give a request an event."""
        if not stream.started:
            self._waits_no_more(stream)
        stream.push(event)

    def remove(self, stream: Stream) -> None:
        """Forget a request, which has ended."""
        del self._by_id[stream.request.id]
        if not stream.started:
            self._waits_no_more(stream)
        if not self._by_id:
            self.idle.set()

    def _waits_no_more(self, stream: Stream) -> None:
        tenant = stream.request.tenant
        self.waiting[tenant] -= 1
        if not self.waiting[tenant]:
            del self.waiting[tenant]

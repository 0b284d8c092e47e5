"""The requests that have not ended, by id. Knows no process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

from radixserve.front.stream import Stream


class Streams:
    """All requests that have not ended."""

    def __init__(self) -> None:
        self.idle = asyncio.Event()  # set while there are none
        self.idle.set()
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
        """Add a request."""
        self._by_id[stream.request.id] = stream
        self.idle.clear()

    def remove(self, stream: Stream) -> None:
        """Forget a request, which has ended."""
        del self._by_id[stream.request.id]
        if not self._by_id:
            self.idle.set()

    @property
    def num_waiting(self) -> int:
        """How many requests have not received anything."""
        return sum(not stream.started for stream in self._by_id.values())

    def waiting(self) -> Counter[str]:
        """How many requests of each tenant have not received anything; tenants without are left
        out.
        """
        return Counter(each.request.tenant for each in self._by_id.values() if not each.started)

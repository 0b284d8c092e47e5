"""The front's record of a request that has not ended, and the stream its handler reads.

Prompt and tokens so far are kept, so that a new engine could go on where a dead one stopped. Knows no process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from radixserve.request import Request
from radixserve.step import TokenEvent


@dataclass(slots=True)
class Live:
    """What was asked, what the client was given, and what it has not fetched yet."""

    request: Request
    output_ids: list[int] = field(default_factory=list)
    pending: TokenEvent | None = None  # events not fetched yet, merged into one
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    started: bool = False

    def push(self, event: TokenEvent) -> None:
        """A reader that is behind gets one event with all the tokens, so what waits here stays small."""
        self.started = True
        self.output_ids += event.token_ids
        self.pending = event if self.pending is None else _merged(self.pending, event)
        self.arrived.set()

    async def fetch(self) -> TokenEvent:
        """What has arrived since the last call; waits until there is something."""
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


def _merged(first: TokenEvent, then: TokenEvent) -> TokenEvent:
    """`first` and `then` of one request as one event."""
    first.token_ids = first.token_ids + then.token_ids
    if then.logprobs is not None:
        first.logprobs = (first.logprobs or []) + then.logprobs
    first.finish, first.stop_token_id, first.error = then.finish, then.stop_token_id, then.error
    return first

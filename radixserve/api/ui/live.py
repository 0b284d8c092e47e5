"""The requests that run now and those that have just ended, as the page draws them.

Keeps numbers only, no text: a prompt is never seen here. Used from the event loop's thread.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator

import msgspec

from radixserve.front.generation import Generation
from radixserve.tenants import DEFAULT

MAX_ENDED = 256  # ended requests that a new page still shows
MAX_SHOWN = 256  # requests in one event; with more running, those that began first are left out


class ShownRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One request on the timeline. Times are seconds since the epoch, lengths are tokens."""

    id: str
    endpoint: str
    tenant: str | None = None  # None on a server without tenants
    began: float
    first_token: float | None = None
    ended: float | None = None
    outcome: str | None = None  # as in `radixserve_requests_total`; None while it runs
    prompt: int = 0
    cached: int | None = None  # None until the engine has told
    generated: int = 0


class LiveRequests:
    """Follows requests from their acceptance to some time after their end; bounded memory."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[Generation, float]] = {}  # by id() of the generation
        self._ended: OrderedDict[int, ShownRequest] = OrderedDict()  # by number, oldest first
        self._num_ended = 0

    def begin(self, generation: Generation) -> None:
        """Follow a generation that is about to be submitted; `end` has to be called for it."""
        began = time.time() - (time.monotonic() - generation.arrived)
        self._running[id(generation)] = (generation, began)

    def end(self, generation: Generation, outcome: str) -> None:
        """Note how a generation ended."""
        _, began = self._running.pop(id(generation))
        shown = _shown(generation, began)
        shown.ended, shown.outcome = time.time(), outcome
        self._num_ended += 1
        self._ended[self._num_ended] = shown
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    @property
    def num_ended(self) -> int:
        """How many requests have ended since the start; the mark for `since`."""
        return self._num_ended

    def since(self, mark: int) -> list[ShownRequest]:
        """The requests that ended after the first `mark` ones, as far as they are kept, and those
        that run; at most MAX_SHOWN. O(requests shown).
        """
        ended = [shown for number, shown in self._ended.items() if number > mark]
        return (ended + list(self._shown_running()))[-MAX_SHOWN:]

    def _shown_running(self) -> Iterator[ShownRequest]:
        for generation, began in self._running.values():
            yield _shown(generation, began)


def _shown(generation: Generation, began: float) -> ShownRequest:
    counts, tenant = generation.counts(), generation.streams[0].request.tenant
    firsts = [each.first_token_at for each in generation.streams if each.first_token_at is not None]
    known = any(stream.queue_seconds is not None for stream in generation.streams)
    return ShownRequest(
        id=generation.id,
        endpoint=generation.endpoint,
        tenant=None if tenant == DEFAULT.name else tenant,
        began=began,
        first_token=began + min(firsts) - generation.arrived if firsts else None,
        prompt=counts.prompt,
        cached=counts.cached if known else None,
        generated=counts.generated,
    )

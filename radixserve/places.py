"""Places for what waits, of which no tenant can take those of others, and turns to run."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from radixserve.errors import Unavailable
from radixserve.tenants import ASKING, num_before


class Places:
    """So many places, and more only for tenants who have few: a tenant gets one as long as less
    than all come before it where tenants take turns.
    """

    def __init__(self, number: int, refusal: str) -> None:
        """`refusal` tells a client that there is no place."""
        self._number, self._refusal = number, refusal
        self._taken: Counter[str] = Counter()  # by tenant

    @property
    def num_taken(self) -> int:
        return self._taken.total()

    @contextmanager
    def one(self) -> Iterator[None]:
        """A place for the tenant whose request the current task handles, until the block ends.
        Raises Unavailable if there is none.
        """
        tenant = ASKING.get()
        if num_before(tenant, self._taken) >= self._number:
            raise Unavailable(self._refusal)
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]


class Turns:
    """So much may run at a time. Of what waits, tenants take turns."""

    def __init__(self, number: int) -> None:
        self._num_free = number
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the tenant that is next first

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait for a turn of the tenant whose request the current task handles, which lasts until
        the block ends.
        """
        if self._num_free:
            self._num_free -= 1
        else:
            await self._turn()
        try:
            yield
        finally:
            self._give()

    async def _turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(ASKING.get(), deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it came at the same moment
                self._give()
            raise

    def _give(self) -> None:
        """Let the next one run, of the tenant whose turn it is."""
        while self._waiting:
            tenant = next(iter(self._waiting))
            turns = self._waiting.pop(tenant)
            turn = turns.popleft()
            if turns:
                self._waiting[tenant] = turns  # behind the others
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._num_free += 1

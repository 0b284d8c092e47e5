"""Places for what waits or runs, of which no tenant can take those of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

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

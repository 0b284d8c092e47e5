"""Limits of each tenant: requests and tokens per minute, and requests at a time.

A bucket holds what a tenant may use now, and fills at its rate up to a minute's worth. A request
needs a token bucket that is not empty, and takes its whole prompt and, when it ends, its whole
answer. So the level may fall below zero, and then the tenant waits until it is above again: one
long prompt is served, and the rate holds on average.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from radixserve.errors import RateLimited
from radixserve.tenants import Tenant


class Bucket:
    """What may be used now, of something that has a limit per minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._level = math.inf  # full, whatever the first limit is
        self._at = clock()

    def seconds_until(self, amount: float, per_minute: int) -> float:
        """How long until the bucket holds `amount`, at most a minute's worth; 0: it does."""
        self._fill(per_minute)
        return max(0.0, (min(amount, per_minute) - self._level) * 60.0 / per_minute)

    def take(self, amount: float, per_minute: int) -> None:
        """Use `amount`, whether the bucket holds it or not."""
        self._fill(per_minute)
        self._level -= amount

    def _fill(self, per_minute: int) -> None:
        now = self._clock()
        self._level = min(per_minute, self._level + (now - self._at) * per_minute / 60.0)
        self._at = now


class _Usage:
    """What one tenant uses."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.running = 0
        self.requests = Bucket(clock)
        self.tokens = Bucket(clock)


class TenantLimits:
    """Admits requests of tenants. Usage is kept by name, so it outlives a new reading of the file;
    names come from that file only.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._usage: dict[str, _Usage] = {}

    @contextmanager
    def entered(self, tenant: Tenant) -> Iterator[None]:
        """A request of `tenant`, from its arrival to its end. Raises RateLimited."""
        usage = self._of(tenant)
        if 0 < tenant.concurrent_requests <= usage.running:
            what = f"{usage.running} requests of this key's tenant run already"
            raise RateLimited(f"{what}; {tenant.concurrent_requests} may.", retry_after=1)
        self._check(usage.requests, 1, tenant.requests_per_minute, "requests")
        self.check_tokens(tenant)
        if tenant.requests_per_minute:
            usage.requests.take(1, tenant.requests_per_minute)
        usage.running += 1
        try:
            yield
        finally:
            usage.running -= 1

    def check_tokens(self, tenant: Tenant) -> None:
        """Raises RateLimited if the tenant has used all of its tokens."""
        self._check(self._of(tenant).tokens, 1, tenant.tokens_per_minute, "tokens")

    def use_tokens(self, tenant: Tenant, num_tokens: int) -> None:
        """Count tokens of a prompt or an answer."""
        if tenant.tokens_per_minute:
            self._of(tenant).tokens.take(num_tokens, tenant.tokens_per_minute)

    def _of(self, tenant: Tenant) -> _Usage:
        usage = self._usage.get(tenant.name)
        if usage is None:
            usage = self._usage[tenant.name] = _Usage(self._clock)
        return usage

    def _check(self, bucket: Bucket, amount: int, per_minute: int, what: str) -> None:
        if not per_minute:
            return
        seconds = bucket.seconds_until(amount, per_minute)
        if seconds > 0:
            raise RateLimited(
                f"This key's tenant may use {per_minute} {what} per minute; try again later.",
                retry_after=math.ceil(seconds),
            )

"""Tenants: who shares the server, and what each of them may use.

Plain values: the front reads them from the file of keys (`key_file`), the engine gets them with the
shares of the K/V budget. Nothing here knows keys, HTTP or slots.
"""

from __future__ import annotations

from collections import Counter
from contextvars import ContextVar
from typing import Final

import msgspec


class Tenant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tenant and its limits.

    Attributes:
        admin: may steer the cache and change settings.
        kv_quota: most of the K/V budget that its cached tokens may fill while others need it; up
            to 1 a share, above bytes; 0: no limit.
        kv_floor: what of its cached tokens others cannot evict, in the same units.
        requests_per_minute: 0: no limit.
        tokens_per_minute: of prompts and answers, cached ones included; 0: no limit.
        concurrent_requests: 0: no limit.
        max_priority: how far its requests may move ahead: `priority` may be -max_priority.
        weight: its share of the computing, relative to that of other tenants.
    """

    name: str
    admin: bool = False
    kv_quota: float = 0.0
    kv_floor: float = 0.0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_requests: int = 0
    max_priority: int = 0
    weight: float = 1.0


MAX_PRIORITY: Final = 100
"""The range of `priority` is -MAX_PRIORITY .. MAX_PRIORITY."""

DEFAULT: Final = Tenant(name="default", max_priority=MAX_PRIORITY)
"""Everybody, on a server without keys."""

OWNER: Final = Tenant(name="default", admin=True, max_priority=MAX_PRIORITY)
"""Whoever has the one key of the setting `api_key`."""

ASKING: Final[ContextVar[str]] = ContextVar("asking", default=DEFAULT.name)
"""The name of the tenant whose request the current task handles."""


def num_before(tenant: str, waiting: Counter[str]) -> int:
    """How many of those that wait, given by tenant, come before a new request of `tenant`. Tenants
    take turns, so if it has less than an equal part of the queue, these are not all. An example:

        waiting {"a": 19, "b": 1}    a new one of "a" comes behind all 20, one of "b" behind 2
    """
    return min(waiting.total(), len(waiting) * waiting[tenant])

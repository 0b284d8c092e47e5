"""Tenants: who shares the server, and what each of them may use.

Plain values: the front reads them from the file of keys, the engine gets the shares of the K/V
budget. Nothing here knows keys, HTTP or slots.
"""

from __future__ import annotations

from typing import Final

import msgspec


class Tenant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tenant and its limits; 0 stands for no limit."""

    name: str
    admin: bool = False  # may steer the cache and change settings


DEFAULT: Final = Tenant(name="default")
"""Everybody, on a server without keys."""

OWNER: Final = Tenant(name="default", admin=True)
"""Whoever has the one key of the setting `api_key`."""

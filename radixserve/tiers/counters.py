"""What every tier counts."""

from __future__ import annotations

from typing import Final

from radixserve.cache.hindsight import BUDGETS
from radixserve.declared import Declared
from radixserve.tiers import NAMES

TIER_BYTES = Declared(
    "gauge",
    "radixserve_tier_bytes",
    "bytes",
    "Keys and values below the device, by tier (host, disk): budget and used",
    ("tier", "state"),
    values=(NAMES, ("budget", "used")),
)

TIER_TOKENS = Declared(
    "counter",
    "radixserve_tier_tokens_total",
    "tokens",
    "Tokens copied to a tier (down) and back to the device (up)",
    ("tier", "direction"),
    values=(NAMES, ("down", "up")),
)

TIER_GHOST_HIT_TOKENS = Declared(
    "counter",
    "radixserve_tier_ghost_hit_tokens_total",
    "tokens",
    "Tokens that neither the device nor host memory had but that would have been in a host memory "
    "with a larger budget; exact to 64 tokens for the eviction policy lru, an estimate for others",
    ("tier", "budget"),
    values=(("host",), tuple(BUDGETS)),
)

COUNTERS: Final = (
    TIER_BYTES,
    TIER_TOKENS,
    TIER_GHOST_HIT_TOKENS,
)

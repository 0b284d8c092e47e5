"""What every tier counts."""

from __future__ import annotations

from typing import Final

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

COUNTERS: Final = (
    TIER_BYTES,
    TIER_TOKENS,
)

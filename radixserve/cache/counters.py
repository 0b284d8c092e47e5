"""What the device's prefix cache counts."""

from __future__ import annotations

from typing import Final

from radixserve.declared import Declared

KV_BYTES = Declared(
    "gauge",
    "radixserve_kv_bytes",
    "bytes",
    "Memory for keys and values: budget = free + used, used = leased + evictable; "
    "cached is what the prefix tree owns, leased or not",
    ("state",),
    values=(("budget", "free", "used", "leased", "evictable", "cached"),),
)

EVICTED_TOKENS = Declared(
    "counter",
    "radixserve_evicted_tokens_total",
    "tokens",
    "Tokens evicted from the prefix tree",
)

RECOMPUTED_TOKENS = Declared(
    "counter",
    "radixserve_eviction_regret_tokens_total",
    "tokens",
    "Tokens evicted from the device and computed again, as far as evictions are remembered: three "
    "times the budget",
)

GHOST_HIT_TOKENS = Declared(
    "counter",
    "radixserve_ghost_hit_tokens_total",
    "tokens",
    "Tokens that were computed but would have hit on a device with a larger budget; exact to 64 "
    "tokens for the eviction policy lru, an estimate for others",
    ("budget",),
    values=(("1.5x", "2x", "4x"),),
)

OLDEST_SECONDS = Declared(
    "gauge",
    "radixserve_oldest_kv_seconds",
    "seconds",
    "Time since the last use of the keys and values on the device that were not used for longest, "
    "of those that may be evicted; 0 without any",
)

TREE_NODES = Declared("gauge", "radixserve_tree_nodes", "nodes", "Nodes of the prefix tree")

TENANT_KV_BYTES = Declared(
    "gauge",
    "radixserve_tenant_kv_bytes",
    "bytes",
    "Cached keys and values on the device, by tenant",
    ("tenant",),
)

TENANT_EVICTED_TOKENS = Declared(
    "counter",
    "radixserve_tenant_evicted_tokens_total",
    "tokens",
    "Tokens of a tenant that were evicted from the device, for requests of its own (self) or of "
    "other tenants (others)",
    ("tenant", "by"),
)

COUNTERS: Final = (
    KV_BYTES,
    EVICTED_TOKENS,
    RECOMPUTED_TOKENS,
    GHOST_HIT_TOKENS,
    OLDEST_SECONDS,
    TREE_NODES,
    TENANT_KV_BYTES,
    TENANT_EVICTED_TOKENS,
)

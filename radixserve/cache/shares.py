"""Shares of the cache: leaves of a tenant above its quota go first, those of a tenant at its floor
last.

A layer over any policy of eviction, which decides in all other cases. What belongs to no tenant
(`Node.owner` is empty) has neither quota nor floor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import product

from sortedcontainers import SortedList

from radixserve.cache.counters import TENANT_EVICTED_TOKENS, TENANT_KV_BYTES
from radixserve.cache.policies.policy import Policy
from radixserve.cache.radix import Node
from radixserve.declared import Numbers
from radixserve.prefix import Prefix


class Shares:
    """A `Policy` that keeps the quotas and floors of tenants. With `t` tenants that have either, a
    victim costs O(t) more than that of the policy below.
    """

    def __init__(self, policy: Policy, tokens_of: Mapping[str, int]) -> None:
        """`tokens_of` counts the tokens in the tree by owner, and is kept up to date elsewhere."""
        self.policy = policy
        self.evicted: Counter[tuple[str, str]] = (
            Counter()
        )  # tokens, by owner and "self" or "others"
        self.evicting_for = ""  # the owner of what needs the room now
        self._tokens_of = tokens_of
        self._owners: dict[str, None] = {}  # those of which anything was heard
        self._quotas: dict[str, int] = {}  # tokens
        self._floors: dict[str, int] = {}  # tokens
        self._leaves: dict[str, SortedList] = {}  # offered ones by owner, least recently used first
        self._keys: dict[Node, tuple[int, int, Node]] = {}

    def limit(self, owner: str, quota: int, floor: int) -> None:
        """Set the shares of a tenant in tokens; 0: none."""
        self._owners[owner] = None
        for limits, tokens in ((self._quotas, quota), (self._floors, floor)):
            if tokens:
                limits[owner] = tokens
            else:
                limits.pop(owner, None)

    def numbers(self, slot_bytes: int) -> Numbers:
        """What it counts, as declared in `cache.counters`."""
        tokens = {owner: self._tokens_of.get(owner, 0) for owner in self._owners}
        evicted = {each: self.evicted[each] for each in product(self._owners, ("self", "others"))}
        return {
            **{TENANT_KV_BYTES.key(each): count * slot_bytes for each, count in tokens.items()},
            **{TENANT_EVICTED_TOKENS.key(*each): count for each, count in evicted.items()},
        }

    def oldest_use(self) -> int | None:
        """The last use of the leaf that was used least recently; None without leaves. O(owners)."""
        return min((line[0][0] for line in self._leaves.values()), default=None)

    def victim(self) -> Node | None:
        """The next leaf of the tenant that is furthest above its quota; if there is none, that of
        the policy below, or the least recently used one whose owner is not at its floor.
        """
        over = max(self._quotas, key=self._excess, default=None)
        if over is not None and self._excess(over) > 0:
            return self._first(over)
        leaf = self.policy.victim()
        if leaf is None or not self._is_guarded(leaf.owner):
            return leaf
        free = [each for each in self._leaves if not self._is_guarded(each)]
        least = min(free, key=lambda owner: self._leaves[owner][0][:2], default=None)
        return leaf if least is None else self._first(least)

    def _excess(self, owner: str) -> float:
        """By how much an owner exceeds its quota, as a share of it; 0 if none of it can go."""
        quota = self._quotas[owner]
        return (
            max(0, self._tokens_of.get(owner, 0) - quota) / quota if owner in self._leaves else 0.0
        )

    def _is_guarded(self, owner: str) -> bool:
        return self._tokens_of.get(owner, 0) <= self._floors.get(owner, -1)

    def _first(self, owner: str) -> Node:
        leaf: Node = self._leaves[owner][0][2]
        return leaf

    # A policy's other calls: each is passed on.

    def offer(self, leaf: Node) -> None:
        """See `Policy.offer`."""
        key = self._keys[leaf] = (leaf.last_use, leaf.serial, leaf)
        self._leaves.setdefault(leaf.owner, SortedList()).add(key)
        self.policy.offer(leaf)

    def withdraw(self, leaf: Node) -> None:
        """See `Policy.withdraw`."""
        line = self._leaves[leaf.owner]
        line.remove(self._keys.pop(leaf))
        if not line:
            del self._leaves[leaf.owner]
        self.policy.withdraw(leaf)

    def hit(self, node: Node, num_tokens: int, now: int) -> None:
        """See `Policy.hit`."""
        self.policy.hit(node, num_tokens, now)

    def used(self, node: Node) -> None:
        """See `Policy.used`."""
        self.policy.used(node)

    def evicts(self, leaf: Node, num_tokens: int) -> None:
        """See `Policy.evicts`."""
        if leaf.owner:
            by = "self" if leaf.owner == self.evicting_for else "others"
            self.evicted[leaf.owner, by] += num_tokens
        self.policy.evicts(leaf, num_tokens)

    def recall(self, prefix: Prefix, depth: int) -> int:
        """See `Policy.recall`."""
        return self.policy.recall(prefix, depth)

    def resize(self, num_slots: int) -> None:
        """See `Policy.resize`. Quotas and floors are tokens, and are set by `limit`."""
        self.policy.resize(num_slots)

    def check(self, leaves: list[Node]) -> None:
        """See `Policy.check`."""
        lined_up = [key[2] for line in self._leaves.values() for key in line]
        assert set(lined_up) == set(leaves) == self._keys.keys(), "a tenant's line is wrong"
        for leaf in leaves:
            assert self._keys[leaf][:2] == (leaf.last_use, leaf.serial), "a leaf's use has changed"
        self.policy.check(leaves)

"""Slots within a budget that moves: taking some evicts K/V of the tree where too few are free.

Owns the free slots and who goes when they are short: what was dropped first, then leaves in the
policy's order, with the shares of tenants. Says beforehand what goes (`on_evict`, `on_gone`). Does
not know leases: only that what they pin stays, and that the slots they hold are neither free nor
the tree's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from radixserve.cache.counters import EVICTED_TOKENS
from radixserve.cache.dropped import DroppedNodes
from radixserve.cache.eviction import Evictor
from radixserve.cache.hindsight import Counted, Hindsight
from radixserve.cache.policies.policy import Policy
from radixserve.cache.radix import Node, RadixTree, path_prefix, path_runs
from radixserve.cache.second_slots import SecondSlots
from radixserve.cache.shares import Shares
from radixserve.cache.slots import Run, SlotAllocator, write_slots
from radixserve.declared import Numbers
from radixserve.prefix import Prefix, owner_of
from radixserve.step import Slots

OnEvict = Callable[[Prefix, Slots], None]
"""Called before K/V is evicted, with the tokens from position 0 to the last of the leaf, and their
slots.
"""

OnGone = Callable[[Node, int, bool, int], None]
"""Called before K/V goes, with its node, the offset in it from which on it goes, whether it is
evicted (else it was dropped), and for how many tokens room is made.
"""


class BudgetedSlots:
    """Slots for leases and for the tree, as many as the budget allows:

        | leases' own | the tree's, pinned | the tree's, not pinned | free | held back |
        |                                  |<--- num_available ----------->|           |
        |<------------------ allocator.num_slots ------------------------->|           |
        |<------------------ allocator.capacity -------------------------------------->|

    `allocator.num_slots` is the budget. Where leases keep it from shrinking it is more for a while,
    and then nothing is available.
    """

    def __init__(
        self,
        num_slots: int,
        slot_bytes: int,
        tree: RadixTree,
        policy: Policy,
        hindsight: Counted | None,
        second: SecondSlots | None = None,
    ) -> None:
        """`policy` belongs to these slots alone; `hindsight`: of what to count what more slots
        would have brought. A slot that is freed loses its second slot, and the number of these
        follows the budget.
        """
        self.budget = num_slots
        self.slot_bytes = slot_bytes
        self.allocator = SlotAllocator(num_slots)
        self.hindsight = None
        if hindsight is not None:
            self.hindsight = Hindsight(policy, num_slots, counted=hindsight)
        self.shares = Shares(self.hindsight or policy, tree.tokens_of)
        self.evictor = Evictor(tree, self.shares)
        self.dropped = DroppedNodes(tree, self.evictor)
        self.on_evict: OnEvict | None = None
        self.on_gone: OnGone | None = None
        self.evicted_tokens_total = 0
        self._tree, self._second = tree, second
        self._limits: dict[str, tuple[float, float]] = {}  # of tenants, as `limit` was told

    @property
    def num_available(self) -> int:
        """Slots that can be taken now: free ones, and those of tokens without a lease."""
        return self.allocator.num_free + self.evictor.evictable_tokens

    # take and free

    def take(self, num_slots: int, owner: str) -> list[Run]:
        """Allocate slots for `owner`, of which it is known that so many are available."""
        if num_slots > self.allocator.num_free:
            self.evict(num_slots - self.allocator.num_free, owner)
        runs = self.allocator.allocate(num_slots)
        assert runs is not None, "evicting made less room than was counted"
        return runs

    def free(self, runs: list[Run]) -> None:
        """Take slots back, which may be owed to a budget that has shrunk."""
        self._free(runs)
        self._keep_budget()

    def _free(self, runs: list[Run]) -> None:
        if self._second is not None:
            self._second.forget(runs)
        self.allocator.free(runs)

    def evict(self, num_tokens: int, owner: str = "") -> int:
        """Drop `num_tokens` tokens without a lease, in the policy's order, because `owner` needs
        room; returns how many there were to drop.

        `on_evict` is called for each leaf before it is dropped or loses its tail. What `drop` made
        unfindable goes first, whole node by whole node.
        """
        free_before, self.shares.evicting_for = self.allocator.num_free, owner
        self._sweep(sys.maxsize, num_tokens)
        swept = self.allocator.num_free - free_before
        self._free(self.evictor.evict(num_tokens - swept, self._telling(num_tokens)))
        dropped = self.allocator.num_free - free_before
        self.evicted_tokens_total += dropped - swept
        return dropped

    def _telling(self, num_tokens: int) -> Callable[[Node], None] | None:
        """What tells of each leaf that goes when `num_tokens` tokens do."""
        on_gone, left = self.on_gone, num_tokens
        if on_gone is None:
            return self._tell if self.on_evict else None

        def tell(leaf: Node) -> None:
            nonlocal left
            stays = max(0, leaf.num_tokens - left)
            left -= leaf.num_tokens - stays
            on_gone(leaf, stays, True, num_tokens)
            if self.on_evict is not None:
                self._tell(leaf)

        return tell

    def _tell(self, leaf: Node) -> None:
        assert self.on_evict is not None, "somebody wants to be told"
        prefix = path_prefix(leaf)
        slots = np.empty(prefix.num_tokens, np.int32)
        write_slots(path_runs(leaf, None), slots)
        self.on_evict(prefix, slots)

    def drop_leaf(self, leaf: Node) -> int:
        """Free one unpinned leaf without asking the policy; returns its tokens. `on_evict` is not
        called.
        """
        self.free(self.evictor.take(leaf))
        return leaf.num_tokens

    def drop(self, top: Node) -> None:
        """Let nobody find `top` and what is below it any more; `sweep` frees it. `on_evict` is not
        called.
        """
        if self.on_gone is not None:
            # Of a whole namespace the nodes below its root are told, because the root is empty.
            for node in top.children.values() if top.is_root else (top,):
                self.on_gone(node, 0, False, 0)
        self.dropped.add(top)

    def sweep(self, num_nodes: int) -> bool:
        """Free dropped nodes, looking at `num_nodes` of them; False if nothing is left to free."""
        self._sweep(num_nodes, sys.maxsize)
        self._keep_budget()
        return self.dropped.pending

    def _sweep(self, num_nodes: int, num_tokens: int) -> None:
        if self.dropped.pending:
            self._free(self.dropped.sweep(num_nodes, num_tokens))

    # the budget, and the shares of it

    def resize(self, num_slots: int) -> int:
        """Use `num_slots` slots from now on, at most those that there were at first. Returns how
        many tokens were evicted.

        Where there are fewer than before, free slots are held back first, then those of tokens
        without a lease, in the policy's order. If leases hold more than that, the rest follows as
        they end: until then `allocator.num_slots` is more than `budget`, and nothing is free. What
        was held back is given back when there are more. O(runs * log(runs)) without evictions.
        """
        assert 0 < num_slots <= self.allocator.capacity, "the budget is part of the pool"
        self.budget = num_slots
        self.shares.resize(num_slots)
        for owner in self._limits:
            self._limit(owner)
        evicted_before = self.evicted_tokens_total
        if self.allocator.num_slots < num_slots:
            self.allocator.give_back(num_slots - self.allocator.num_slots)
        self._keep_budget()
        if self._second is not None:
            self._second.resize(num_slots)
        return self.evicted_tokens_total - evicted_before

    def _keep_budget(self) -> None:
        """Hold back slots that are more than the budget, as far as leases allow it."""
        excess = self.allocator.num_slots - self.budget
        if excess > 0:
            if excess > self.allocator.num_free:
                self.evict(excess - self.allocator.num_free)
            self.allocator.hold_back(min(excess, self.allocator.num_free))

    def limit(self, namespace: str, quota: float, floor: float) -> None:
        """Set how much of the cache the tenant of `namespace` may fill while others need room, and
        how much of it others cannot evict as long as anything else can go: up to 1 a share of all
        slots, above bytes; 0: none. Does nothing for a namespace without a tenant.
        """
        owner = owner_of(namespace)
        if owner:
            self._limits[owner] = (quota, floor)
            self._limit(owner)

    def _limit(self, owner: str) -> None:
        quota, floor = self._limits[owner]
        self.shares.limit(owner, self.in_slots(quota), self.in_slots(floor))

    def in_slots(self, amount: float) -> int:
        """A quota or floor in slots: at least one, because 0 is no limit."""
        slots = amount * self.budget if amount <= 1 else amount / self.slot_bytes
        return max(1, int(slots)) if amount else 0

    def change_policy(self, policy: Policy) -> None:
        """Let `policy`, which belongs to these slots alone from now on, decide what goes. It gets
        all leaves, those that were not used for longest first, and knows of no earlier uses but
        what nodes count. O(nodes + leaves * log(leaves)).
        """
        layer = self.hindsight or self.shares
        leaves = [node for node in self._tree.nodes() if node.place is not None]
        leaves.sort(key=lambda leaf: (leaf.last_use, leaf.serial))
        for leaf in leaves:
            layer.policy.withdraw(leaf)
        for node in self._tree.nodes():
            node.queue = node.ticket = node.seen = 0
        layer.policy = policy
        for leaf in leaves:
            policy.used(leaf)
            policy.offer(leaf)

    def numbers(self) -> Numbers:
        """What it counts, as declared in `cache.counters`."""
        return {
            EVICTED_TOKENS.key(): self.evicted_tokens_total,
            **(self.hindsight.numbers() if self.hindsight is not None else {}),
            **self.shares.numbers(self.slot_bytes),
        }

    def check(self) -> None:
        """Assert that the budget is kept as far as leases allow it, and what the free slots assert;
        O(num_slots).
        """
        self.allocator.check()
        assert self.allocator.num_slots >= self.budget, "slots of the budget are held back"
        assert self.allocator.num_slots == self.budget or not self.num_available, (
            "there is more than the budget, and some of it could be held back"
        )

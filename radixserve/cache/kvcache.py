"""The prefix cache as the scheduler sees it: match a prompt, lease slots, publish what was
computed, release.

Owns the rules that join tree, eviction and free slots: every slot belongs to the free runs, to one
tree node or to one lease; only published (computed) tokens can be found; a sequence to be computed
never takes its last token from the cache. Knows prefixes and slot numbers, no tensors, no requests
and no steps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from radixserve.cache.counters import EVICTED_TOKENS, KV_BYTES, TREE_NODES
from radixserve.cache.dropped import DroppedNodes
from radixserve.cache.eviction import Evictor
from radixserve.cache.hindsight import Hindsight
from radixserve.cache.policies.policy import Policy
from radixserve.cache.policies.ranked import least_recently_used
from radixserve.cache.radix import Node, Point, RadixTree, path_prefix, path_runs
from radixserve.cache.shares import Shares
from radixserve.cache.slots import Run, SlotAllocator, append_runs, split_runs, write_slots
from radixserve.declared import Numbers
from radixserve.prefix import TOKEN_BYTES, Branch, Prefix, owner_of
from radixserve.step import Slots

OnEvict = Callable[[Prefix, Slots], None]
"""Called before K/V is evicted, with the tokens from position 0 to the last of the leaf, and their
slots.
"""

OnGone = Callable[[Node, int, bool, int], None]
"""Called before K/V goes, with its node, the offset in it from which on it goes, whether it is
evicted (else it was dropped), and for how many tokens room is made.
"""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Who has the slots now: num_slots == free + cached + private. Counts are tokens, which is
    slots.
    """

    num_slots: int  # not held back: the budget, and more while leases keep it from shrinking
    free: int
    cached: int  # owned by the tree, pinned or not
    pinned: int  # of those, under a lease: not evictable now
    private: int  # owned by leases: not published (yet)
    leases: int
    nodes: int
    evicted_tokens_total: int


class KVCache:
    """Slots for sequences, and the published prefixes they can share. One thread, the engine's, may
    use it.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        slot_bytes: int = 1,
        enabled: bool = True,
        policy: Policy | None = None,
        first_serial: int = 0,
        hindsight: bool = True,
    ) -> None:
        """With `enabled` false nothing is found and nothing published; leases still hand out slots.
        `slot_bytes` is the K/V of one token, for `numbers` only. `policy` belongs to this cache
        alone; without one the least recently used leaf goes first. `first_serial`: see RadixTree.
        With `hindsight` it counts what more memory would have brought.
        """
        self.slot_bytes = slot_bytes
        self.enabled = enabled
        self.allocator = SlotAllocator(num_slots)
        self.tree = RadixTree(first_serial)
        policy = policy or least_recently_used()
        self.hindsight = Hindsight(policy, num_slots) if hindsight else None
        self.shares = Shares(self.hindsight or policy, self.tree.tokens_of)
        self.evictor = Evictor(self.tree, self.shares)
        self.dropped = DroppedNodes(self.tree, self.evictor)
        self.on_evict: OnEvict | None = None
        self.on_gone: OnGone | None = None
        self._leases: dict[Lease, None] = {}  # the live ones, oldest first
        self._evicted_tokens_total = 0
        self._limits: dict[str, tuple[float, float]] = {}  # of tenants, as `limit` was told
        self.budget = num_slots

    def resize(self, num_slots: int) -> int:
        """Use `num_slots` slots from now on, at most those that there were at first. Returns how
        many tokens were evicted.

        Where there are fewer than before, free slots are held back first, then those of tokens
        without a lease, in the policy's order. If leases hold more than that, the rest follows as
        they end: until then `stats().num_slots` is more than `budget`, and nothing is free. What
        was held back is given back when there are more. O(runs * log(runs)) without evictions.
        """
        assert 0 < num_slots <= self.allocator.capacity, "the budget is part of the pool"
        self.budget = num_slots
        self.shares.resize(num_slots)
        for owner in self._limits:
            self._limit(owner)
        evicted_before = self._evicted_tokens_total
        if self.allocator.num_slots < num_slots:
            self.allocator.give_back(num_slots - self.allocator.num_slots)
        self._keep_budget()
        return self._evicted_tokens_total - evicted_before

    def _keep_budget(self) -> None:
        """Hold back slots that are more than the budget, as far as leases allow it."""
        excess = self.allocator.num_slots - self.budget
        if excess > 0:
            if excess > self.allocator.num_free:
                self.evict(excess - self.allocator.num_free)
            self.allocator.hold_back(min(excess, self.allocator.num_free))

    def _free(self, runs: list[Run]) -> None:
        """Take slots back, which may be owed to a budget that has shrunk."""
        self.allocator.free(runs)
        self._keep_budget()

    def change_policy(self, policy: Policy) -> None:
        """Let `policy`, which belongs to this cache alone from now on, decide what goes. It gets
        all leaves, those that were not used for longest first, and knows of no earlier uses but
        what nodes count. O(nodes + leaves * log(leaves)).
        """
        layer = self.hindsight or self.shares
        leaves = [node for node in self.tree.nodes() if node.place is not None]
        leaves.sort(key=lambda leaf: (leaf.last_use, leaf.serial))
        for leaf in leaves:
            layer.policy.withdraw(leaf)
        for node in self.tree.nodes():
            node.queue = node.ticket = node.seen = 0
        layer.policy = policy
        for leaf in leaves:
            policy.used(leaf)
            policy.offer(leaf)

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

    def match(self, prefix: Prefix) -> int:
        """How many tokens of `prefix`, from the first on, are cached now.

        Changes nothing, recency included. Not capped: a lease on a prompt that is cached whole
        takes one less.
        """
        point = self.tree.find(prefix)
        return 0 if point is None else point.depth

    def lease(self, prefix: Prefix, num_slots: int, *, read: bool = True) -> Lease | None:
        """A lease on what is cached of `prefix` without its last token, and own slots up to
        position `num_slots` - 1.

        At least one token is left to compute, because the next token is drawn from the last one's
        logits: this rule is enforced here only. With `read` false nothing is taken from the cache.
        If there are too few free slots, unleased tokens are evicted. None if even that is not
        enough: then nothing was evicted, pinned or split.
        """
        usable = prefix.first(prefix.num_tokens - 1 if read else 0)
        lease = self._lease(usable, num_slots, owner_of(prefix.namespace))
        if lease is not None:
            lease.note_hit()
        return lease

    def hold(self, prefix: Prefix) -> Lease:
        """A lease on all that is cached of `prefix`, its last token included, without own slots."""
        lease = self._lease(prefix, 0, owner_of(prefix.namespace))
        assert lease is not None, "a lease on nothing new needs no room"
        return lease

    def receive(self, prefix: Prefix) -> Lease | None:
        """A lease on all that is cached of `prefix`, as `hold` gives it, and own slots for the rest
        of it, to be filled with K/V from elsewhere. None if there is no room, as for `lease`.
        """
        return self._lease(prefix, prefix.num_tokens, owner_of(prefix.namespace))

    def _lease(self, prefix: Prefix, num_slots: int, owner: str) -> Lease | None:
        root = self.tree.root(prefix.namespace_at(0))
        point = self.tree.walk(root, 0, prefix)
        num_own = max(num_slots - point.depth, 0)
        if num_own > self._room(point):
            if not root.children and not root.pins:
                self.tree.remove(root)
            return None
        self.evictor.hit(point)
        node = self.evictor.split(point)
        self.evictor.pin(node)
        uses_before = self.evictor.recall(prefix, point.depth) if num_own else 0
        lease = Lease(self, node, point.depth, self._take(num_own, owner), uses_before, owner)
        self._leases[lease] = None
        return lease

    def _room(self, point: Point) -> int:
        """Slots that are free, or can be once the prefix up to `point` is pinned."""
        newly_pinned = (
            0 if point.node.pins else point.offset + self.evictor.unpinned_above(point.node)
        )
        return self.allocator.num_free + self.evictor.evictable_tokens - newly_pinned

    def _take(self, num_slots: int, owner: str) -> list[Run]:
        """Allocate slots for `owner` of which it is known that so many are free or evictable."""
        if num_slots > self.allocator.num_free:
            self.evict(num_slots - self.allocator.num_free, owner)
        runs = self.allocator.allocate(num_slots)
        assert runs is not None, "evicting made less room than was counted"
        return runs

    def evict(self, num_tokens: int, owner: str = "") -> int:
        """Drop `num_tokens` tokens without a lease, in the policy's order, because `owner` needs
        room; returns how many there were to drop.

        `on_evict` is called for each leaf before it is dropped or loses its tail. What `drop` made
        unfindable goes first, whole node by whole node.
        """
        free_before, self.shares.evicting_for = self.allocator.num_free, owner
        self._sweep(sys.maxsize, num_tokens)
        swept = self.allocator.num_free - free_before
        self.allocator.free(self.evictor.evict(num_tokens - swept, self._telling(num_tokens)))
        dropped = self.allocator.num_free - free_before
        self._evicted_tokens_total += dropped - swept
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

    def drop(self, branch: Branch) -> None:
        """Make the K/V of `branch` unfindable at once, what hangs below it in other namespaces
        included: from the first token on that nothing else shares. `on_evict` is not called.

        Free slots appear with `sweep`, and where leases hold them, when these are released. Leases
        on what was dropped publish nothing any more. O(namespaces * leases * depth).
        """
        for root in self.tree.all_roots():
            if branch.has(str(root.key)) and self.tree.is_findable(root):
                top = self._top_to_drop(root, branch.tokens)
                if top is not None:
                    self._drop(top)

    def _drop(self, top: Node) -> None:
        if self.on_gone is not None:
            self._tell_dropped(top)
        self.dropped.add(top)
        for lease in self._leases:
            if _is_below(lease._node, top):
                lease.withhold()

    def _top_to_drop(self, root: Node, tokens: bytes) -> Node | None:
        """What is below `root` and begins with `tokens`; None if nothing does."""
        before = path_prefix(root).tokens
        if before.startswith(tokens):
            return root
        if not tokens.startswith(before):
            return None
        prefix = Prefix(str(root.key), tokens)
        point = self.tree.walk(root, root.start, prefix)
        if point.depth < prefix.num_tokens:
            return None
        node = point.node
        while self._is_alone(node):
            assert node.parent is not None, "a root is not alone"
            node = node.parent
        return node

    def _tell_dropped(self, top: Node) -> None:
        """Of a whole namespace the nodes below its root are told, because the root is empty."""
        assert self.on_gone is not None, "somebody wants to be told"
        for node in top.children.values() if top.is_root else (top,):
            self.on_gone(node, 0, False, 0)

    def _is_alone(self, node: Node) -> bool:
        """Whether only `node` needs its parent, which is no root: no lease and no other child
        does.
        """
        parent = node.parent
        if parent is None or parent.is_root:
            return False
        return len(parent.children) == 1 and parent.pins <= (1 if node.pins else 0)

    def drop_leaf(self, leaf: Node) -> int:
        """Free one unpinned leaf without asking the policy; returns its tokens. `on_evict` is not
        called.
        """
        self._free(self.evictor.take(leaf))
        return leaf.num_tokens

    def sweep(self, num_nodes: int) -> bool:
        """Free dropped nodes, looking at `num_nodes` of them; False if nothing is left to free."""
        self._sweep(num_nodes, sys.maxsize)
        self._keep_budget()
        return self.dropped.pending

    def _sweep(self, num_nodes: int, num_tokens: int) -> None:
        if self.dropped.pending:
            self.allocator.free(self.dropped.sweep(num_nodes, num_tokens))

    def _tell(self, leaf: Node) -> None:
        assert self.on_evict is not None, "somebody wants to be told"
        prefix = path_prefix(leaf)
        slots = np.empty(prefix.num_tokens, np.int32)
        write_slots(path_runs(leaf, None), slots)
        self.on_evict(prefix, slots)

    def leased_nodes(self, besides: Collection[Lease] = ()) -> set[Node]:
        """The nodes that are under a lease which is not one of `besides`. O(leases and nodes)."""
        others = set(besides)
        return nodes_of(lease for lease in self._leases if lease not in others)

    def stats(self) -> CacheStats:
        """Counts of this moment; O(1)."""
        num_slots, free, cached = (
            self.allocator.num_slots,
            self.allocator.num_free,
            self.tree.num_tokens,
        )
        return CacheStats(
            num_slots=num_slots,
            free=free,
            cached=cached,
            pinned=self.evictor.pinned_tokens,
            private=num_slots - free - cached,
            leases=len(self._leases),
            nodes=self.tree.num_nodes,
            evicted_tokens_total=self._evicted_tokens_total,
        )

    def numbers(self) -> Numbers:
        """What it counts, as declared in `cache.counters`."""
        stats = self.stats()
        leased, used = stats.private + stats.pinned, stats.num_slots - stats.free
        slots = {
            "budget": stats.num_slots,
            "free": stats.free,
            "used": used,
            "leased": leased,
            "evictable": used - leased,
            "cached": stats.cached,
        }
        return {
            EVICTED_TOKENS.key(): stats.evicted_tokens_total,
            TREE_NODES.key(): stats.nodes,
            **(self.hindsight.numbers() if self.hindsight is not None else {}),
            **{KV_BYTES.key(state): count * self.slot_bytes for state, count in slots.items()},
            **self.shares.numbers(self.slot_bytes),
        }

    def check(self) -> None:
        """Assert every invariant: of the parts, of each lease, and one owner for each slot;
        O(num_slots).
        """
        self.allocator.check()
        self.tree.check()
        self.evictor.check([lease._node for lease in self._leases])
        num_owners = np.zeros(self.allocator.capacity, np.int32)
        owned = [self.allocator.free_runs(), self.allocator.held]
        owned += [node.runs for node in self.tree.nodes()]
        owned += [lease._own for lease in self._leases]
        for start, length in (run for runs in owned for run in runs):
            num_owners[start : start + length] += 1
        wrong = np.flatnonzero(num_owners != 1)
        assert not len(wrong), (
            f"slot {wrong[0]} has {num_owners[wrong[0]]} owners ({len(wrong)} slots are wrong)"
        )
        assert self.enabled or not self.tree.num_tokens, "a cache that is off holds tokens"
        assert self.allocator.num_slots >= self.budget, "slots of the budget are held back"
        spare = self.allocator.num_free + self.evictor.evictable_tokens
        assert self.allocator.num_slots == self.budget or not spare, (
            "there is more than the budget, and some of it could be held back"
        )
        for lease in self._leases:
            lease._check()


def nodes_of(leases: Iterable[Lease]) -> set[Node]:
    """The nodes that are under any of `leases`: what several share is there once. O(leases and
    nodes).
    """
    nodes: set[Node] = set()
    for lease in leases:
        node: Node | None = lease._node
        while node is not None and node not in nodes:
            nodes.add(node)
            node = node.parent
    return nodes


def _is_below(node: Node, top: Node) -> bool:
    """Whether `node` is `top` or below it; O(depth)."""
    above: Node | None = node
    while above is not None and above is not top:
        above = above.parent
    return above is top


class Lease:
    """A sequence's hold on slots: a pinned path in the tree, and own slots behind it. A context
    manager.

    `slots[p]` is the slot of position p. Say 6 of a prompt's 10 tokens were cached, slots for 12
    were requested, and the first chunk, up to position 8, is computed and published:

        position     0   1   2   3   4   5 | 6   7 | 8   9  10  11
        slots       40  41  42  43   7   8 |20  21 |22  23  24  25
                    shared                 |ours   |private
                    0 .. num_cached        |.. num_published  .. len(slots)

        shared    owned by tree nodes that were there before us; pinned by us, read by anyone
        ours      owned by the tree since we published them; pinned by us, read by anyone
        private   owned by this lease (the runs in `_own`, by position); invisible to others

    `_node` is the node that ends at num_published; pinning it protects the first two intervals.
    publish() moves the second border to the right: the tree takes our slots over. Where another
    sequence published the same tokens in the meantime, our duplicates are freed instead and `slots`
    names the tree's (same tokens, same K/V). release() unpins the node and frees the private slots.
    """

    __slots__ = (
        "_cache",
        "_node",
        "_num_slots",
        "_own",
        "_owner",
        "_table",
        "_uses_before",
        "is_withheld",
        "num_cached",
        "num_published",
    )

    def __init__(
        self,
        cache: KVCache,
        node: Node,
        num_cached: int,
        own: list[Run],
        uses_before: int,
        owner: str,
    ) -> None:
        self.num_cached = num_cached
        self.num_published = num_cached
        self.is_withheld = False  # what it holds was dropped: it publishes nothing any more
        self._cache = cache
        self._node = node
        self._own = own
        self._owner = owner  # the tenant whose request it serves
        self._uses_before = uses_before  # of what it computes, as far as the policy remembers
        self._table: Slots = np.empty(
            num_cached, np.int32
        )  # grows by doubling; `slots` is its used part
        self._num_slots = num_cached
        write_slots(path_runs(node, None), self._table)
        self._append(own)

    @property
    def node(self) -> Node:
        """The node in which ends what is published of it; its path to the root is pinned."""
        return self._node

    @property
    def slots(self) -> Slots:
        """Slot of position p at index p, int32. A view: publish() may change it in place, grow()
        may replace it.
        """
        return self._table[: self._num_slots]

    def grow(self, num_slots: int) -> bool:
        """Allocate own slots up to position `num_slots` - 1, evicting unleased tokens if there are
        too few free slots.

        False if that is not enough: then nothing changed.
        """
        self._assert_live()
        cache = self._cache
        more = num_slots - self._num_slots
        if more > cache.allocator.num_free + cache.evictor.evictable_tokens:
            return False
        if more > 0:
            runs = cache._take(more, self._owner)
            append_runs(self._own, runs)
            self._append(runs)
        return True

    def _append(self, runs: list[Run]) -> None:
        """Add the slots of `runs` to the table."""
        used = self._num_slots
        self._num_slots += sum(length for _, length in runs)
        if self._num_slots > len(self._table):
            table = np.empty(max(self._num_slots, 2 * used), np.int32)
            table[:used] = self._table[:used]
            self._table = table
        write_slots(runs, self._table[used : self._num_slots])

    def publish(self, prefix: Prefix) -> None:
        """Make the K/V of `prefix`, all computed, visible to others.

        `prefix` is the sequence so far, beginning with what was published before. A step in flight
        may still read slots that this frees: steps run in order, and that of the next owner comes
        later. O(new tokens), apart from copying the edge of a leaf that grows.
        """
        self._assert_live()
        depth, num_tokens = self.num_published, prefix.num_tokens
        assert depth <= num_tokens <= self._num_slots, (
            "publish goes forward, and only over positions that have a slot"
        )
        if not self._cache.enabled or self.is_withheld:
            return
        for _, stop in prefix.parts():
            self._publish(prefix.first(stop))

    def _publish(self, prefix: Prefix) -> None:
        """Publish what all is in one namespace, but for what is published before it."""
        tree, depth = self._cache.tree, self.num_published
        if depth >= prefix.num_tokens:
            return
        if depth == prefix.num_public and not self._node.is_root:
            self._move(tree.root_below(self._node, prefix.namespace), depth)
        self._adopt(tree.walk(self._node, depth, prefix))
        if self.num_published < prefix.num_tokens:
            self._contribute(prefix.behind(self.num_published))

    def _adopt(self, point: Point) -> None:
        """Move down to `point`, up to which other sequences have published meanwhile: use their
        slots and free our duplicates.
        """
        depth = self.num_published
        if point.depth == depth:
            return
        duplicates, self._own = split_runs(self._own, point.depth - depth)
        old, node = self._node, self._cache.evictor.split(point)
        write_slots(path_runs(node, old), self._table[depth : point.depth])
        self._move(node, point.depth)
        self._cache._free(duplicates)

    def _contribute(self, edge: bytes) -> None:
        """Give the tree the tokens of `edge`, which follow our node, and the slots that
        hold them.
        """
        evictor, node = self._cache.evictor, self._node
        num_tokens = len(edge) // TOKEN_BYTES
        runs, self._own = split_runs(self._own, num_tokens)
        if not node.is_root and not node.children and node.pins == 1:
            evictor.extend(
                node, edge, runs
            )  # a leaf that only we lease: nobody else comes to hold more
            self.num_published += num_tokens
        else:
            leaf = evictor.insert(node, edge, runs, self._uses_before)
            self._move(leaf, self.num_published + num_tokens)

    def _move(self, node: Node, depth: int) -> None:
        """Pin `node` instead of the present node, which is above it. `node` is pinned first, so
        that the path is protected at any time.
        """
        self._cache.evictor.pin(node)
        self._cache.evictor.unpin(self._node)
        self._node, self.num_published = node, depth

    def release(self) -> None:
        """Free the private slots and unpin the published ones. A second call does nothing."""
        cache = self._cache
        if self not in cache._leases:
            return
        del cache._leases[self]
        if self.is_withheld:
            cache.dropped.releasing(self._node)
        cache.evictor.touch(self._node)
        cache.evictor.unpin(self._node)
        own, self._own = self._own, []
        self._num_slots = 0
        cache._free(own)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.release()

    def note_hit(self) -> None:
        """Count a request in the node where its lease begins."""
        self._node.hits += 1

    def withhold(self) -> None:
        """Publish nothing from now on, because it was dropped."""
        self.is_withheld = True

    def _assert_live(self) -> None:
        assert self in self._cache._leases, "the lease was released"

    def _check(self) -> None:
        """Assert that the table names the slots of our path and of our own runs, and that the
        borders are in order.
        """
        path = path_runs(self._node, None)
        assert self.num_published == sum(length for _, length in path), (
            "the pinned path ends elsewhere"
        )
        assert self.num_cached <= self.num_published <= self._num_slots <= len(self._table), (
            "borders are out of order"
        )
        expected = [
            slot for start, length in path + self._own for slot in range(start, start + length)
        ]
        assert self.slots.tolist() == expected, "the table names slots of somebody else"

"""The prefix cache as the scheduler sees it: match a prompt, lease slots, publish what was
computed, release.

Owns the leases, and the rules that join them with tree and slots: every slot belongs to the free
runs, to one tree node or to one lease; only published (computed) tokens can be found; a sequence to
be computed never takes its last token from the cache. How slots become free is the idea of
`budgeted_slots`. Knows prefixes and slot numbers, no tensors, no requests and no steps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from radixserve.cache.budgeted_slots import BudgetedSlots
from radixserve.cache.counters import KV_BYTES, TREE_NODES
from radixserve.cache.hindsight import Counted
from radixserve.cache.policies.policy import Policy
from radixserve.cache.policies.ranked import least_recently_used
from radixserve.cache.radix import Node, Point, RadixTree, path_runs
from radixserve.cache.slots import Run, append_runs, split_runs, write_slots
from radixserve.cache.states import HeldState, StateSlots
from radixserve.cache.windows import HeldWindow, WindowSlots
from radixserve.declared import Numbers
from radixserve.prefix import TOKEN_BYTES, Branch, Prefix, owner_of
from radixserve.step import Slots, StatePart


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
        hindsight: Counted | None = "leases",
        second: WindowSlots | StateSlots | None = None,
    ) -> None:
        """With `enabled` false nothing is found and nothing published; leases still hand out slots.
        `slot_bytes` is what one token takes of the budget. `policy` belongs to this cache
        alone; without one the least recently used leaf goes first.
        `hindsight` says of what it counts what more memory would have brought; see Hindsight.
        `second` are the window slots of these slots, for layers that attend a window only, or the
        state slots, for layers that carry a state.
        """
        self.enabled = enabled
        self.tree = RadixTree()
        self.second = second
        self.slots = BudgetedSlots(
            num_slots, slot_bytes, self.tree, policy or least_recently_used(), hindsight, second
        )
        self.evictor, self.dropped = self.slots.evictor, self.slots.dropped
        self._leases: dict[Lease, None] = {}  # the live ones, oldest first

    @property
    def slots_per_state(self) -> int:
        """For how many slots there is one state slot; 0 if there are none."""
        if not isinstance(self.second, StateSlots):
            return 0
        return -(-len(self.second.of) // self.second.allocator.capacity)

    def match(self, prefix: Prefix) -> int:
        """How many tokens of `prefix`, from the first on, are cached now and can be continued.

        Changes nothing, recency included. Not capped: a lease on a prompt that is cached whole
        takes one less.
        """
        root = self.tree.roots.get(prefix.namespace_at(0))
        return 0 if root is None else self._walk(root, prefix).depth

    def agrees(self, prefix: Prefix) -> int:
        """How many tokens of `prefix` are cached now, whether or not they can be continued: `match`
        tells of fewer where second slots are missing.
        """
        root = self.tree.roots.get(prefix.namespace_at(0))
        return 0 if root is None else self.tree.walk(root, 0, prefix).depth

    def _walk(self, root: Node, prefix: Prefix) -> Point:
        """How far `prefix` agrees with the tree below `root`, and can be continued there: the
        window before that, or the state, is there.
        """
        point = self.tree.walk(root, 0, prefix)
        return self._continuable(root, prefix, point)

    def _continuable(self, root: Node, prefix: Prefix, point: Point) -> Point:
        """The last point before `point`, up to which `prefix` agrees, that can be continued."""
        if self.second is None:
            return point
        depth = self.second.servable(_slots_to(point))
        return point if depth == point.depth else self.tree.walk(root, 0, prefix.first(depth))

    def continuation(self, prefix: Prefix, most: int) -> bytes:
        """At most `most` tokens that followed `prefix` before; see `RadixTree.continuation`."""
        return self.tree.continuation(prefix, most)

    def lease(self, prefix: Prefix, num_slots: int, *, read: bool = True) -> Lease | None:
        """A lease on what is cached of `prefix` without its last token, and own slots up to
        position `num_slots` - 1.

        At least one token is left to compute, because the next token is drawn from the last one's
        logits: this rule is enforced here only. With `read` false nothing is taken from the cache.
        If there are too few free slots, unleased tokens are evicted. None if even that is not
        enough: then nothing was evicted, pinned or split.
        """
        usable = prefix.first(prefix.num_tokens - 1 if read else 0)
        owner, end = owner_of(prefix.namespace), prefix.num_tokens - 1
        lease = self._lease(usable, num_slots, owner, end)
        if lease is not None:
            lease.note_hit()
        return lease

    def hold(self, prefix: Prefix) -> Lease:
        """A lease on all that is cached of `prefix`, its last token included, without own slots."""
        lease = self._lease(prefix, 0, owner_of(prefix.namespace), prefix.num_tokens)
        assert lease is not None, "a lease on nothing new needs no room"
        return lease

    def receive(self, prefix: Prefix) -> Lease | None:
        """A lease on all that is cached of `prefix`, as `hold` gives it, and own slots for the rest
        of it, to be filled with K/V from elsewhere. None if there is no room, as for `lease`.
        """
        num_tokens = prefix.num_tokens
        return self._lease(prefix, num_tokens, owner_of(prefix.namespace), num_tokens)

    def _lease(self, prefix: Prefix, num_slots: int, owner: str, end: int) -> Lease | None:
        """`end`: how much of the sequence another one like it could take from the cache."""
        root = self.tree.root(prefix.namespace_at(0))
        agrees = self.tree.walk(root, 0, prefix)
        point = self._continuable(root, prefix, agrees)
        num_own = max(num_slots - point.depth, 0)
        if num_own > self._room(point) or not self._has_second(point, num_own):
            if not root.children and not root.pins:
                self.tree.remove(root)
            return None
        self.evictor.hit(point)
        node = self.evictor.split(point)
        self.evictor.pin(node)
        uses_before = self.evictor.recall(prefix, point.depth) if num_own else 0
        marks = frozenset((agrees.depth, end))
        own = self.slots.take(num_own, owner)
        lease = Lease(self, node, point.depth, own, uses_before, owner)
        self._leases[lease] = None
        lease.begin(marks)
        return lease

    def _room(self, point: Point) -> int:
        """Slots that are free, or can be once the prefix up to `point` is pinned."""
        newly_pinned = (
            0 if point.node.pins else point.offset + self.evictor.unpinned_above(point.node)
        )
        return self.slots.num_available - newly_pinned

    def _has_second(self, point: Point, num_own: int) -> bool:
        """Whether there are second slots for the first of `num_own` tokens behind `point`."""
        return self.second is None or self.second.has_room(_slots_to(point), num_own)

    def drop(self, branch: Branch) -> None:
        """Make the K/V of `branch` unfindable at once, what hangs below it in other namespaces
        included: from the first token on that nothing else shares. `on_evict` is not called.

        Free slots appear with `slots.sweep`, and where leases hold them, when these are released.
        Leases on what was dropped publish nothing any more. O(namespaces * leases * depth).
        """
        for root in self.tree.all_roots():
            if branch.has(str(root.key)) and self.tree.is_findable(root):
                top = self.dropped.top_to_drop(root, branch.tokens)
                if top is not None:
                    self._drop(top)

    def _drop(self, top: Node) -> None:
        self.slots.drop(top)
        for lease in self._leases:
            if _is_below(lease._node, top):
                lease.withhold()

    def leased_nodes(self, besides: Collection[Lease] = ()) -> set[Node]:
        """The nodes that are under a lease which is not one of `besides`. O(leases and nodes)."""
        others = set(besides)
        return nodes_of(lease for lease in self._leases if lease not in others)

    def stats(self) -> CacheStats:
        """Counts of this moment; O(1)."""
        allocator, cached = self.slots.allocator, self.tree.num_tokens
        num_slots, free = allocator.num_slots, allocator.num_free
        return CacheStats(
            num_slots=num_slots,
            free=free,
            cached=cached,
            pinned=self.evictor.pinned_tokens,
            private=num_slots - free - cached,
            leases=len(self._leases),
            nodes=self.tree.num_nodes,
            evicted_tokens_total=self.slots.evicted_tokens_total,
        )

    def numbers(self) -> Numbers:
        """What it counts, as declared in `cache.counters`."""
        return {
            TREE_NODES.key(): self.tree.num_nodes,
            **{KV_BYTES.key(state): num_bytes for state, num_bytes in self.bytes().items()},
            **self.slots.numbers(),
        }

    def bytes(self) -> dict[str, int]:
        """The bytes of K/V in each of the states of `counters.KV_BYTES`; O(leases)."""
        stats, second = self.stats(), self.second
        slots = _by_state(stats.num_slots, stats.free, stats.private + stats.pinned, stats.cached)
        if second is None:
            return {state: num * self.slots.slot_bytes for state, num in slots.items()}
        private = second.num_private([each.slots[each.num_published :] for each in self._leases])
        num_second, free = second.allocator.num_slots, second.allocator.num_free
        others = _by_state(num_second, free, second.num_held, second.num_used - private)
        return {
            state: num * second.main_bytes + others[state] * second.slot_bytes
            for state, num in slots.items()
        }

    def check(self) -> None:
        """Assert every invariant: of the parts, of each lease, and one owner for each slot;
        O(num_slots).
        """
        self.slots.check()
        self.tree.check()
        self.evictor.check([lease._node for lease in self._leases])
        if self.second is not None:
            self.second.check([lease.held for lease in self._leases])
        self._check_owners()
        assert self.enabled or not self.tree.num_tokens, "a cache that is off holds tokens"
        for lease in self._leases:
            lease._check()

    def _check_owners(self) -> None:
        allocator = self.slots.allocator
        num_owners = np.zeros(allocator.capacity, np.int32)
        owned = [allocator.free_runs(), allocator.held]
        owned += [node.runs for node in self.tree.nodes()]
        owned += [lease._own for lease in self._leases]
        for start, length in (run for runs in owned for run in runs):
            num_owners[start : start + length] += 1
        wrong = np.flatnonzero(num_owners != 1)
        assert not len(wrong), (
            f"slot {wrong[0]} has {num_owners[wrong[0]]} owners ({len(wrong)} slots are wrong)"
        )


def _by_state(budget: int, free: int, leased: int, cached: int) -> dict[str, int]:
    """How many slots are in each of the states of `counters.KV_BYTES`."""
    used = budget - free
    return {
        "budget": budget,
        "free": free,
        "used": used,
        "leased": leased,
        "evictable": used - leased,
        "cached": cached,
    }


def _slots_to(point: Point) -> Slots:
    """The slots of the tokens up to `point`; O(tokens)."""
    node = point.node
    slots: Slots = np.empty(node.start + node.num_tokens, np.int32)
    write_slots(path_runs(node, None), slots)
    return slots[: point.depth]


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
        "_held",
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
        self._held: HeldWindow | HeldState | None = None
        self._append(own)
        self._note_end(num_cached)

    def begin(self, marks: frozenset[int]) -> None:
        """Hold the second slots that the first rows need. `marks` are numbers of tokens behind
        which others may go on.
        """
        second, start = self._cache.second, self.num_cached
        if second is not None:
            self._held = second.begin(self._table[:start], marks)
            self.cover(start, min(start + second.first_rows, len(self.slots)))

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
        more = num_slots - self._num_slots
        if more > self._cache.slots.num_available:
            return False
        if more > 0:
            runs = self._cache.slots.take(more, self._owner)
            append_runs(self._own, runs)
            self._append(runs)
        return True

    def cover(self, start: int, stop: int) -> bool:
        """Make sure that rows at positions [start, stop), which have slots, can be computed: they
        and the windows before them have window slots, or there is a state slot for what is behind
        them. What lies before these windows may lose its own: later rows begin at `start` at least.
        False if there are too few such slots; always true without windows and states.
        """
        self._assert_live()
        return self._held is None or self._held.cover(self.slots, start, stop)

    def plan_states(self, start: int, stop: int) -> tuple[StatePart, ...]:
        """How a step that computes these rows, which are covered, uses state slots; nothing if
        there are no states.
        """
        return self._held.plan(start, stop) if isinstance(self._held, HeldState) else ()

    def reach(self, num_tokens: int) -> None:
        """The first `num_tokens` tokens are computed, by the steps planned so far."""
        if isinstance(self._held, HeldState):
            self._held.reach(self.slots, num_tokens)

    @property
    def held(self) -> Slots:
        """The slots whose window slots it holds, or the state slots."""
        return self.slots[:0] if self._held is None else self._held.held(self.slots)

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
        if depth < prefix.num_public:
            self._publish(prefix.first(prefix.num_public))
        if self.num_published < num_tokens:
            self._publish(prefix)

    def _publish(self, prefix: Prefix) -> None:
        """Publish the rest of `prefix`, which all is in one namespace."""
        tree, depth = self._cache.tree, self.num_published
        if depth == prefix.num_public and not self._node.is_root:
            self._move(tree.root_below(self._node, prefix.namespace), depth)
        self._adopt(tree.walk(self._node, depth, prefix))
        if self.num_published < prefix.num_tokens:
            if self.num_published > depth:
                self.note_end()  # where this sequence leaves what others have published
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
        theirs: Slots = np.empty(point.depth - depth, np.int32)
        write_slots(path_runs(node, old), theirs)
        if self._cache.second is not None:
            self._cache.second.merge(self._table[depth : point.depth], theirs)
        self._table[depth : point.depth] = theirs
        self._move(node, point.depth)
        self._cache.slots.free(duplicates)

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
        if self._held is not None:
            self._held.leave(self.slots, self.num_published)
        cache.evictor.touch(self._node)
        cache.evictor.unpin(self._node)
        own, self._own = self._own, []
        self._num_slots = 0
        cache.slots.free(own)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.release()

    def note_end(self) -> None:
        """Other sequences may go on where the published part ends now: the window before that, or
        the state, stays longer than others.
        """
        self._note_end(self.num_published)

    def _note_end(self, depth: int) -> None:
        if self._cache.second is not None:
            self._cache.second.note_end(self._table[:depth])

    def note_hit(self) -> None:
        """Count a request that found something in the node where its lease begins."""
        if self.num_cached:
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

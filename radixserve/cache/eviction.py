"""Decides which nodes of the tree may be evicted, and in which order.

Owns the pins (what leases protect), the logical clock, and the evictable leaves in the order of a
policy. Does not know leases, only the node in which each ends; nor free slots: evicted slots are
returned to the caller as runs.
"""

from __future__ import annotations

from collections.abc import Callable

from radixserve.cache.policies.policy import Policy
from radixserve.cache.radix import Node, Point, RadixTree
from radixserve.cache.slots import Run
from radixserve.prefix import TOKEN_BYTES, Prefix


class Evictor:
    """Pins of leased nodes, and the order in which the others go.

    A lease pins only the node it ends in; a node that becomes pinned pins its parent:

        root            pins 1   (system is pinned)
        '- system       pins 2   (user A is pinned; a lease ends here)
           |- user A    pins 1   (a lease ends here)
           '- user B    pins 0   evictable

    So a lease costs a walk up to the first ancestor that was pinned already, `pinned_tokens` is
    always known, and what is not pinned has nothing pinned below it: every unpinned token can be
    evicted, leaf after leaf.

    Recency is lazy too: a lease touches only the node it ends in, and a child that goes leaves its
    `last_use` and `uses` to its parent. A parent's turn comes only when all its children are gone,
    and by then it has the time of the latest use of anything that was below it, and the number of
    all those uses, which is what touching all ancestors at every use would have given.
    """

    def __init__(self, tree: RadixTree, policy: Policy) -> None:
        self.pinned_tokens = 0
        self.policy = policy
        self._tree = tree
        self._clock = 0

    @property
    def evictable_tokens(self) -> int:
        return self._tree.num_tokens - self.pinned_tokens

    def pin(self, node: Node) -> None:
        """Protect `node` and its ancestors; O(ancestors not pinned yet)."""
        above: Node | None = node
        while above is not None:
            above.pins += 1
            if above.pins > 1:
                return
            self.pinned_tokens += above.num_tokens
            if above.place is not None:
                self.policy.withdraw(above)
            above = above.parent

    def unpin(self, node: Node) -> None:
        """Undo one pin(); O(ancestors not pinned any more)."""
        above: Node | None = node
        while above is not None:
            assert above.pins > 0, "a node is unpinned more often than it was pinned"
            above.pins -= 1
            if above.pins:
                return
            self.pinned_tokens -= above.num_tokens
            if not above.children:
                self._offer(above)
            above = above.parent

    def extend(self, leaf: Node, edge: bytes, runs: list[Run]) -> None:
        """RadixTree.extend() for a pinned leaf: what is added is pinned with it."""
        assert leaf.pins, "only a pinned leaf grows"
        self._tree.extend(leaf, edge, runs)
        self.pinned_tokens += len(edge) // TOKEN_BYTES

    def split(self, point: Point) -> Node:
        """RadixTree.split() for any node: one that can be evicted stands in line with its lower
        part from now on.
        """
        lower = point.node
        stands = lower.place is not None and point.offset < lower.num_tokens
        if stands:
            self.policy.withdraw(lower)
        node = self._tree.split(point)
        if stands:
            self.policy.offer(lower)
        return node

    def insert(self, parent: Node, edge: bytes, runs: list[Run], uses_before: int) -> Node:
        """RadixTree.insert(); `uses_before` is what recall() said of these tokens."""
        continued = _continued(parent)
        leaf = self._tree.insert(parent, edge, runs)
        leaf.before = max(uses_before, continued)
        return leaf

    def hit(self, point: Point) -> None:
        """Note that a lease takes the tokens up to `point` from the cache."""
        if point.depth:
            self.policy.hit(point.node, point.offset, self._clock)

    def recall(self, prefix: Prefix, depth: int) -> int:
        """Policy.recall()."""
        return self.policy.recall(prefix, depth)

    def touch(self, node: Node) -> None:
        """Note that a pinned node was used now. The clock counts uses: it never jumps, and no two
        uses tie.
        """
        self._clock += 1
        node.last_use = self._clock
        node.uses += 1
        self.policy.used(node)

    def unpinned_above(self, node: Node) -> int:
        """Tokens of `node`'s ancestors that pin(node) would protect newly; O(those ancestors)."""
        num_tokens = 0
        above = node.parent
        while above is not None and not above.pins:
            num_tokens += above.num_tokens
            above = above.parent
        return num_tokens

    @property
    def clock(self) -> int:
        """How many uses there were: the logical time of `Node.last_use`."""
        return self._clock

    def take(self, leaf: Node) -> list[Run]:
        """Take an unpinned leaf out of the order and out of the tree, whatever the policy says; its
        slots are the caller's.
        """
        if leaf.place is not None:
            self.policy.withdraw(leaf)
        is_top, parent = leaf in self._tree.detached, leaf.parent
        runs = self._tree.remove(leaf)
        if parent is not None:
            self._inherit(parent, leaf)
            if not is_top:  # whose parent was offered when it was detached, and may be gone
                self.offer(parent)
        return runs

    def _inherit(self, parent: Node, leaf: Node) -> None:
        """Leave to `parent` the uses and hits of a leaf that has gone, which were its own as well,
        wherever it stands in the order. A root below public tokens, which goes with what is below
        it, is passed over.
        """
        if parent.is_root and parent.parent is not None:
            parent = parent.parent
        is_lined_up = parent.place is not None
        if is_lined_up:
            self.policy.withdraw(parent)
        parent.last_use = max(parent.last_use, leaf.last_use)
        parent.uses += leaf.uses
        parent.hits += leaf.hits
        if is_lined_up:
            self._offer(parent)

    def offer(self, node: Node) -> None:
        """Line up `node` for eviction if it has become a leaf that is not pinned."""
        if not node.children and not node.pins and node.place is None:
            self._offer(node)

    def _offer(self, node: Node) -> None:
        """Line up an unpinned node without children for eviction; an empty namespace goes
        at once.
        """
        if node.is_root:
            self.take(node)
        else:
            self.policy.offer(node)

    def evict(self, num_tokens: int, before: Callable[[Node], None] | None = None) -> list[Run]:
        """Drop exactly `num_tokens` unpinned tokens (all of them, if there are fewer) and return
        their slots.

        Leaves go whole in the policy's order; the last one only loses its tail. `before` is called
        with each leaf while it still has all its tokens. O(log leaves) for each leaf.
        """
        runs: list[Run] = []
        policy, tree = self.policy, self._tree
        while num_tokens > 0 and (leaf := policy.victim()) is not None:
            if before is not None:
                before(leaf)
            length = leaf.num_tokens
            policy.evicts(leaf, min(length, num_tokens))
            policy.withdraw(leaf)
            if length > num_tokens:
                runs += tree.truncate(leaf, length - num_tokens)
                policy.offer(leaf)
                break
            runs += tree.remove(leaf)
            num_tokens -= length
            parent = leaf.parent
            assert parent is not None, "a root is never in the order"
            self._inherit(parent, leaf)
            if not parent.children and not parent.pins:
                self._offer(parent)
        return runs

    def check(self, leased: list[Node]) -> None:
        """Assert pins, totals and the order, given the node of every live lease; O(nodes
        + leases).
        """
        ends: dict[int, int] = {}
        for node in leased:
            ends[id(node)] = ends.get(id(node), 0) + 1
        for top in self._tree.detached:
            if top.parent is not None and top.pins:
                ends[id(top.parent)] = ends.get(id(top.parent), 0) + 1
        pinned_tokens, evictable = 0, []
        for node in self._tree.nodes():
            pins = ends.pop(id(node), 0) + sum(child.pins > 0 for child in node.children.values())
            assert node.pins == pins, (
                f"a node has {node.pins} pins, its leases and children make {pins}"
            )
            pinned_tokens += node.num_tokens if pins else 0
            is_evictable = not pins and not node.children
            assert (node.place is not None) == is_evictable, (
                "the order holds a wrong node, or lacks one"
            )
            if is_evictable:
                assert not node.is_root, "an empty namespace is still there"
                evictable.append(node)
        assert not ends, "a lease ends in a node that is not in the tree"
        assert self.pinned_tokens == pinned_tokens, (
            f"{pinned_tokens} tokens are pinned, {self.pinned_tokens} counted"
        )
        self.policy.check(evictable)


def _continued(parent: Node) -> int:
    """The uses of what a new child of `parent` continues, as far as one can tell: that of a prompt
    which ended there, or, after a few tokens that were replaced, in an only child.

    A conversation's next turn continues one prompt. Below an opening that many share there are
    several children, and a new one continues none of them.
    """
    if parent.is_root or len(parent.children) > 1:
        return 0
    end = next(iter(parent.children.values()), parent)
    return end.before + end.uses

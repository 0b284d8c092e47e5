"""Frees what was dropped from the tree: subtrees that nobody can find any more.

Dropping is one step, whatever its size: the top of a subtree is detached. Its nodes are freed a few
at a time (`sweep`), so that steps of running requests go on between them. Nodes that running
requests lease stay until these end.

    tree.detached     top A            top B
                      |- free now      '- leased      freed when its lease ends
                      '- free now

Knows the tree and its pins, no leases and no slots.
"""

from __future__ import annotations

from collections.abc import Iterator

from radixserve.cache.eviction import Evictor
from radixserve.cache.radix import Node, RadixTree, path_prefix
from radixserve.cache.slots import Run
from radixserve.prefix import Prefix


class DroppedNodes:
    """The detached subtrees of one tree."""

    def __init__(self, tree: RadixTree, evictor: Evictor) -> None:
        self.freed_tokens_total = self.freed_nodes_total = 0
        self._tree, self._evictor = tree, evictor
        self._unswept: dict[Node, None] = {}  # tops below which something may be free
        self._nodes: Iterator[Node] | None = None  # those of the first of them, while it is swept
        self._again = False  # a lease below it has ended meanwhile

    @property
    def pending(self) -> bool:
        """Whether `sweep` may find something to free."""
        return bool(self._unswept)

    def top_to_drop(self, root: Node, tokens: bytes) -> Node | None:
        """The node with which all goes that begins with `tokens` below `root`, and nothing else:
        the highest one that nothing else shares. None if nothing begins with them. O(depth).
        """
        before = path_prefix(root).tokens
        if before.startswith(tokens):
            return root
        if not tokens.startswith(before):
            return None
        prefix = Prefix(str(root.key), tokens)
        point = self._tree.walk(root, root.start, prefix)
        if point.depth < prefix.num_tokens:
            return None
        node = point.node
        while _is_alone(node):
            assert node.parent is not None, "a root is not alone"
            node = node.parent
        return node

    def add(self, top: Node) -> None:
        """Detach `top` and everything below it; O(1)."""
        self._tree.detach(top)
        self._unswept[top] = None
        if top.parent is not None:
            self._evictor.offer(top.parent)

    def releasing(self, node: Node) -> None:
        """A lease that ends in `node` is about to be released, which may free something below
        every detached top above it; O(depth).
        """
        above: Node | None = node
        while above is not None:
            if above in self._tree.detached:
                self._unswept[above] = None
                self._again = self._nodes is not None
            above = above.parent

    def sweep(self, num_nodes: int, num_tokens: int) -> list[Run]:
        """Free nodes until `num_nodes` were looked at, at least `num_tokens` tokens are free, or
        nothing is left to free; their slots are the caller's.
        """
        runs: list[Run] = []
        while num_nodes > 0 and num_tokens > 0 and (node := self._next()) is not None:
            num_nodes -= 1
            is_gone = node.is_root and not self._tree.has(node)  # with its last child
            if not (is_gone or node.pins or node.children):
                runs += self._evictor.take(node)
                num_tokens -= node.num_tokens
                self.freed_tokens_total += node.num_tokens
                self.freed_nodes_total += not node.is_root
        return runs

    def _next(self) -> Node | None:
        """The next node to look at; None if nothing is left."""
        while self._unswept:
            top = next(iter(self._unswept))
            if self._nodes is None and top in self._tree.detached:
                self._nodes, self._again = _below(top), False
            node = None if self._nodes is None else next(self._nodes, None)
            if node is not None:
                return node
            self._nodes = None
            if not self._again:
                del self._unswept[top]
            self._again = False
        return None

    def left_tokens(self) -> int:
        """Tokens that are dropped and not free yet; O(their nodes)."""
        return sum(node.num_tokens for top in self._tree.detached for node in _below(top))

    def leased_tokens(self) -> int:
        """Tokens that are dropped and still under a lease; O(nodes that are not free yet)."""
        nodes = (node for top in self._tree.detached for node in _below(top))
        return sum(node.num_tokens for node in nodes if node.pins)


def _is_alone(node: Node) -> bool:
    """Whether only `node` needs its parent, which is no root: no lease and no other child
    does.
    """
    parent = node.parent
    if parent is None or parent.is_root:
        return False
    return len(parent.children) == 1 and parent.pins <= (1 if node.pins else 0)


def _below(top: Node) -> Iterator[Node]:
    """`top` and the nodes below it, children before their parents. Nodes that were visited may be
    removed meanwhile.
    """
    stack = [(top, False)]
    while stack:
        node, has_children_behind = stack.pop()
        if has_children_behind or not node.children:
            yield node
        else:
            stack.append((node, True))
            stack += [(child, False) for child in node.children.values()]

"""Walks over the radix tree for those who want to see it, in parts between which steps may run.

A part looks at `NODES` nodes. The tree may change between two parts, so the sums are those of a
tree that was never there as a whole; what is listed was there when it was looked at.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Collection, Generator, Iterable
from typing import Generic, TypeVar

import msgspec

from radixserve.cache.kvcache import KVCache
from radixserve.cache.radix import Node

T = TypeVar("T")
N = TypeVar("N")

Parts = Generator[None, None, T]
"""Work in parts, with a result of type T."""

NODES = 512


class Surveyed(msgspec.Struct, Generic[N], eq=False, gc=False):
    """A node with the sums of what is below it; `level` 0 is where the survey began. The garbage
    collector does not track it, because a walk over the disk holds one for each run; it refers
    upwards only, so it is in no cycle.
    """

    node: N
    serial: int
    parent: Surveyed[N] | None
    level: int
    depth: int  # tokens before it
    last_use: int
    leased: bool = False
    tokens: int = 0  # of it and everything below
    nodes: int = 0
    hits: int = 0
    num_children: int = 0

    def add_to_parent(self) -> None:
        """Add the sums to those of the parent, if it is surveyed."""
        if (above := self.parent) is not None:
            above.tokens += self.tokens
            above.nodes += self.nodes
            above.hits += self.hits
            above.last_use = max(above.last_use, self.last_use)


class Largest(Generic[N]):
    """Takes nodes of a survey with complete sums in any order, and keeps those with the most
    tokens. With a node its parent is kept, which has at least as many.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.tokens = self.nodes = 0  # of everything, kept or not
        self._kept: list[tuple[int, int, int, Surveyed[N]]] = []  # a heap, the smallest first

    def add(self, entry: Surveyed[N]) -> None:
        """O(log most)."""
        if entry.parent is None:
            self.tokens += entry.tokens
            self.nodes += entry.nodes
        ranked = (entry.tokens, -entry.level, -entry.serial, entry)
        if len(self._kept) < self.most:
            heapq.heappush(self._kept, ranked)
        else:
            heapq.heappushpop(self._kept, ranked)

    def kept(self) -> list[Surveyed[N]]:
        """The largest first, each behind its parent."""
        return [ranked[-1] for ranked in sorted(self._kept, reverse=True)]


def roots_of(cache: KVCache, namespaces: Collection[str] | None) -> list[Node]:
    """The roots of these namespaces (None: of all), those below public tokens included."""
    roots = cache.tree.all_roots()
    return roots if namespaces is None else [each for each in roots if each.key in namespaces]


def survey(
    roots: Iterable[Node],
    levels: int,
    see: Callable[[Surveyed[Node]], None],
    *,
    one_namespace: bool = False,
) -> Parts[None]:
    """Call `see` with the nodes of `roots` and of `levels` levels below them, once their sums are
    complete, so children first. Deeper nodes are part of the sums only. With `one_namespace` what
    hangs below public tokens in other namespaces is left out of them, but for its uses, which are
    uses of these tokens, too.

    O(nodes). Nothing is kept of a node that was seen: a hundred thousand objects more would have
    the garbage collector examine all others, which stalls steps.
    """
    looked_at = 0
    for root in roots:
        path = [(_entry(root, None), list(root.children.values()), False)]
        while path:
            looked_at += 1
            if looked_at % NODES == 0:
                yield
            entry, children, is_others = path[-1]
            if not children:
                path.pop()
                if not path or path[-1][0] is not entry:
                    entry.add_to_parent()
                    see(entry)
                continue
            node = children.pop()
            is_others = is_others or (one_namespace and node.is_root)
            below = entry
            if is_others:
                _count_uses(entry, node)
            elif entry.level < levels:
                below = _entry(node, entry)
            else:
                _count(entry, node)
            path.append((below, list(node.children.values()), is_others))


def _entry(node: Node, above: Surveyed[Node] | None) -> Surveyed[Node]:
    level = 0 if above is None else above.level + 1
    entry = Surveyed(node, node.serial, above, level, node.start, node.last_use, node.pins > 0)
    entry.num_children = len(node.children)
    _count(entry, node)
    return entry


def _count(entry: Surveyed[Node], node: Node) -> None:
    _count_uses(entry, node)
    entry.tokens += node.num_tokens
    entry.nodes += 1


def _count_uses(entry: Surveyed[Node], node: Node) -> None:
    entry.last_use = max(entry.last_use, node.last_use)
    entry.hits += node.hits


def walk(roots: Iterable[Node], see: Callable[[Node], None]) -> Parts[None]:
    """Call `see` with each node below `roots` that is in the same namespace as its root, parents
    first, roots included. O(nodes).
    """
    looked_at = 0
    for root in roots:
        rest = [root]
        while rest:
            node = rest.pop()
            if node is root or not node.is_root:
                see(node)
                rest += node.children.values()
            looked_at += 1
            if looked_at % NODES == 0:
                yield


def first_serial() -> int:
    """A number behind which an engine numbers its nodes, so that none of them has the number that a
    node of an earlier engine had: the time in microseconds, because nodes are made more slowly.
    Below 2**53, the largest integer that JavaScript reads exactly.
    """
    return time.time_ns() // 1000


def find(cache: KVCache, serial: int) -> Parts[Node | None]:
    """The node with this serial number; None if it is gone. O(nodes)."""
    stack, looked_at = list(cache.tree.roots.values()), 0
    while stack:
        node = stack.pop()
        if node.serial == serial:
            return node
        stack += node.children.values()
        looked_at += 1
        if looked_at % NODES == 0:
            yield
    return None


def drop_unused(
    cache: KVCache, namespaces: Collection[str] | None, is_old: Callable[[int], bool]
) -> Parts[tuple[int, int]]:
    """Drop every leaf, again and again, whose last use `is_old` and that nobody leases, in these
    namespaces (None: in all). Returns how many tokens and nodes.
    """
    tokens = nodes = 0
    order: list[Node] = []
    yield from walk(roots_of(cache, namespaces), order.append)
    for count, node in enumerate(reversed(order)):
        if _is_free_leaf(cache, node) and is_old(node.last_use):
            tokens += cache.slots.drop_leaf(node)
            nodes += 1
        if count % NODES == 0:
            yield
    return tokens, nodes


def _is_free_leaf(cache: KVCache, node: Node) -> bool:
    """Whether `node` is still in the tree and can be dropped."""
    return node.place is not None and cache.tree.is_findable(node)

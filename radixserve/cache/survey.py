"""Walks over the radix tree for those who want to see it, in parts between which steps may run.

A part looks at `NODES` nodes. The tree may change between two parts, so the sums are those of a
tree that was never there as a whole; what is listed was there when it was looked at.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Collection, Generator, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from radixserve.cache.kvcache import KVCache
from radixserve.cache.radix import Node

T = TypeVar("T")
N = TypeVar("N")

Parts = Generator[None, None, T]
"""Work in parts, with a result of type T."""

NODES = 512


@dataclass(slots=True, eq=False)
class Surveyed(Generic[N]):
    """A node with the sums of what is below it; `level` 0 is where the survey began."""

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
    children: list[Surveyed[N]] = field(default_factory=list)  # those that the survey lists


def roots_of(cache: KVCache, namespaces: Collection[str] | None) -> list[Node]:
    """The roots of these namespaces (None: of all), those below public tokens included."""
    return [each for each in cache.tree.all_roots() if _is_among(str(each.key), namespaces)]


def survey(
    roots: Iterable[Node], levels: int, *, one_namespace: bool = False
) -> Parts[list[Surveyed[Node]]]:
    """The nodes of `roots` and of `levels` levels below them, parents first, with their sums.
    Deeper nodes are part of the sums only. With `one_namespace` what hangs below public tokens in
    other namespaces is left out. O(nodes).
    """
    found: list[Surveyed[Node]] = []
    stack: list[tuple[Node, Surveyed[Node] | None, int]] = [
        (root, None, _depth_of(root)) for root in roots
    ]
    looked_at = 0
    while stack:
        node, above, depth = stack.pop()
        level = 0 if above is None else above.level + 1
        if above is None or level <= levels:
            used, leased = node.last_use, node.pins > 0
            entry = Surveyed(node, node.serial, above, level, depth, used, leased)
            entry.num_children = len(node.children)
            found.append(entry)
            if above is not None:
                above.children.append(entry)
        else:
            entry = above
            entry.last_use = max(entry.last_use, node.last_use)
        entry.tokens += node.num_tokens
        entry.nodes += 1
        entry.hits += node.hits
        children = inner(node) if one_namespace else node.children.values()
        stack += [(child, entry, depth + node.num_tokens) for child in children]
        looked_at += 1
        if looked_at % NODES == 0:
            yield
    yield from add_up(found)
    return found


def inner(node: Node) -> list[Node]:
    """The children of `node` in the same namespace."""
    return [each for each in node.children.values() if not each.is_root]


def add_up(found: list[Surveyed[N]]) -> Parts[None]:
    """Add the sums of each node to those of its parent, which stands before it."""
    for count, entry in enumerate(reversed(found)):
        if count % NODES == 0:
            yield
        if (above := entry.parent) is not None:
            above.tokens += entry.tokens
            above.nodes += entry.nodes
            above.hits += entry.hits
            above.last_use = max(above.last_use, entry.last_use)


def largest(found: list[Surveyed[N]], most: int) -> list[Surveyed[N]]:
    """At most `most` of a survey's nodes, those with the most tokens first, each behind its
    parent.
    """
    heap = [(-each.tokens, each.serial, each) for each in found if each.parent is None]
    heapq.heapify(heap)
    chosen: list[Surveyed[N]] = []
    while heap and len(chosen) < most:
        entry = heapq.heappop(heap)[2]
        chosen.append(entry)
        for child in entry.children:
            heapq.heappush(heap, (-child.tokens, child.serial, child))
    return chosen


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
    roots = roots_of(cache, namespaces)
    order: list[Node] = []
    while roots:
        order.append(node := roots.pop())
        roots += inner(node)
        if len(order) % NODES == 0:
            yield
    for count, node in enumerate(reversed(order)):
        if _is_free_leaf(cache, node) and is_old(node.last_use):
            tokens += cache.drop_leaf(node)
            nodes += 1
        if count % NODES == 0:
            yield
    return tokens, nodes


def _is_among(name: str, namespaces: Collection[str] | None) -> bool:
    return namespaces is None or name in namespaces


def _is_free_leaf(cache: KVCache, node: Node) -> bool:
    """Whether `node` is still in the tree and can be dropped."""
    return node.place is not None and cache.tree.is_findable(node)


def _depth_of(node: Node) -> int:
    depth, above = 0, node.parent
    while above is not None:
        depth, above = depth + above.num_tokens, above.parent
    return depth

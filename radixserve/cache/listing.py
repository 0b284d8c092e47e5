"""A part of a cache's tree as a list of plain values, for those who want to see it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from radixserve.cache.ages import Ages
from radixserve.cache.kvcache import KVCache, Lease, nodes_of
from radixserve.cache.radix import Node, path_prefix, root_of
from radixserve.cache.survey import Largest, Parts, Surveyed, find, roots_of, survey
from radixserve.prefix import Prefix, unpack
from radixserve.questions import ShowTree, TreeNode

LISTED = 128  # nodes that are told in a part


@dataclass(slots=True)
class Listed:
    """A node as it is told, and a function for the prefix that ends with it."""

    told: TreeNode
    prefix: Callable[[], Prefix]


@dataclass(slots=True)
class Listing:
    """The listed nodes, and how much there is of the part that was asked for, listed or not."""

    nodes: list[Listed]
    num_nodes: int
    num_tokens: int


def list_tree(
    cache: KVCache, ages: Ages, question: ShowTree, pins: Collection[Lease] = ()
) -> Parts[Listing | None]:
    """The part of the cache's tree that `question` asks for; None if its node is gone. What only
    the leases `pins` hold is told as pinned, not as leased. O(nodes).
    """
    is_all = question.namespaces is None
    roots = list(cache.tree.roots.values()) if is_all else roots_of(cache, question.namespaces)
    if question.node is not None:
        node = yield from find(cache, question.node)
        if node is None or not (is_all or root_of(node) in roots):
            return None
        roots = [node]
    largest: Largest[Node] = Largest(question.most)
    yield from survey(roots, question.depth, largest.add, one_namespace=not is_all)
    now, leased = time.monotonic(), cache.leased_nodes(pins)
    pinned = nodes_of(pins)
    nodes: list[Listed] = []
    for each in largest.kept():
        is_leased = each.node in leased
        age = 0.0 if is_leased else ages.age(each.last_use, now)
        told = _told(each, age, is_leased, each.node in pinned, question.num_first_tokens)
        nodes.append(Listed(told, partial(path_prefix, each.node)))
        if len(nodes) % LISTED == 0:
            yield
    return Listing(nodes, num_nodes=largest.nodes, num_tokens=largest.tokens)


def _told(
    each: Surveyed[Node], age: float, is_leased: bool, is_pinned: bool, num_first: int
) -> TreeNode:
    node = each.node
    return TreeNode(
        id=node.serial,
        parent=None if node.parent is None else node.parent.serial,
        depth=each.depth,
        tokens=node.num_tokens,
        hits=each.hits,
        age_seconds=round(age, 1),
        leased=is_leased,
        pinned=is_pinned,
        namespace=str(root_of(node).key) if each.parent is None or node.is_root else None,
        children=each.num_children,
        below_tokens=each.tokens - node.num_tokens,
        below_nodes=each.nodes - 1,
        first_tokens=unpack(node.edge, num_first),
    )

"""Shows the trees of the device and of the tiers below it, and in which other tiers each node lies.

Knows tiers by their contract only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Protocol

import msgspec

from radixserve.cache.ages import Ages
from radixserve.cache.kvcache import KVCache, Lease
from radixserve.cache.listing import Listed, Listing, list_tree
from radixserve.cache.survey import Parts
from radixserve.engine.tiers import Tiers
from radixserve.prefix import Prefix
from radixserve.questions import AnyAnswer, Failed, ShowTree, Tree, TreeNode
from radixserve.tiers import DEVICE
from radixserve.tiers.contract import Found, Tier

NO_NODE = Failed(message="There is no such node any more.", not_found=True)

LOOK_SECONDS = 1.0  # in which a tier has to say what it has of the nodes that are shown
BATCH = 32  # prefixes that are looked up between two steps


class Awaited(Protocol):
    """What a tier answers, perhaps later."""

    @property
    def done(self) -> bool: ...


Wait = Callable[[Sequence[Awaited], float | None], Parts[None]]
"""Waits until all have answered, or for so many seconds; None: for as long as a tier may take."""


class TreeShower:
    """Answers `ShowTree`."""

    def __init__(
        self,
        cache: KVCache,
        tiers: Tiers,
        ages: Ages,
        pins: Callable[[], Collection[Lease]],
        wait: Wait,
    ) -> None:
        self._cache, self._tiers, self._ages = cache, tiers, ages
        self._pins, self._wait = pins, wait

    def show(self, question: ShowTree) -> Parts[AnyAnswer]:
        """The tree of one tier. The nodes' K/V is looked up in all others."""
        if question.tier not in self._names():
            return Failed(message=f"This server has no tier {question.tier}.", not_found=True)
        listing = yield from self._listing(question)
        if isinstance(listing, Failed):
            return listing
        ends: dict[str, dict[int, int]] = {}
        for name in self._names():
            if name != question.tier:
                ends[name] = yield from self._ends_in(name, listing.nodes)
        return Tree(
            nodes=[_with_tiers(each.told, question.tier, ends) for each in listing.nodes],
            num_nodes=listing.num_nodes,
            num_tokens=listing.num_tokens,
        )

    def prefix_of(self, tier: str, node: int) -> Parts[Prefix | None]:
        """The tokens up to the end of a node of this tier's tree; None if it is gone."""
        if tier not in self._names():
            return None
        listing = yield from self._listing(ShowTree(tier=tier, node=node, depth=0, most=1))
        return None if isinstance(listing, Failed) else listing.nodes[0].prefix()

    def _names(self) -> list[str]:
        return [DEVICE, *(tier.name for tier in self._tiers.below)]

    def _tier(self, name: str) -> Tier:
        return next(tier for tier in self._tiers.below if tier.name == name)

    def _listing(self, question: ShowTree) -> Parts[Listing | Failed]:
        if question.tier == DEVICE:
            listing = yield from list_tree(self._cache, self._ages, question, self._pins())
            return NO_NODE if listing is None else listing
        showing = self._tier(question.tier).show(question)
        yield from self._wait([showing], None)
        if not showing.done:
            showing.give_up()
            return Failed(message=f"The {question.tier} tier does not answer.")
        if showing.listing is None and question.node is None:
            return Failed(message=f"The {question.tier} tier cannot be read; see the server's log.")
        return showing.listing or NO_NODE

    def _ends_in(self, name: str, nodes: list[Listed]) -> Parts[dict[int, int]]:
        """Up to which depth this tier has the tokens of each node, by node; empty if it does not
        answer in time.
        """
        ends: dict[int, int] = {}
        by_id = {each.told.id: each.told for each in nodes}
        lookups, until = iter(_ends(nodes)), time.monotonic() + LOOK_SECONDS
        while batch := list(islice(lookups, BATCH)):
            found = self._match(name, [each.prefix() for each in batch])
            yield from self._wait(found, until - time.monotonic())
            if not all(each.done for each in found):
                return {}
            for each, end in zip(batch, found, strict=True):
                _note(ends, by_id, each.told, end.num_tokens)
            yield
        return ends

    def _match(self, name: str, prefixes: list[Prefix]) -> list[Found]:
        if name == DEVICE:
            return [Found(self._cache.match(each), done=True) for each in prefixes]
        tier = self._tier(name)
        return [tier.match(each) for each in prefixes]


def _ends(nodes: list[Listed]) -> list[Listed]:
    """The nodes at whose end no listed child begins. Looking these up tells of all others."""
    goes_on = {(each.told.parent, each.told.depth) for each in nodes}
    return [
        each for each in nodes if (each.told.id, each.told.depth + each.told.tokens) not in goes_on
    ]


def _note(ends: dict[int, int], nodes: dict[int, TreeNode], node: TreeNode, end: int) -> None:
    """Up to `end` the tokens are there that lead to the end of `node`."""
    at: TreeNode | None = node
    while at is not None:
        ends[at.id] = max(ends.get(at.id, 0), end)
        end = min(end, at.depth)
        at = None if at.parent is None else nodes.get(at.parent)


def _with_tiers(node: TreeNode, own: str, ends: dict[str, dict[int, int]]) -> TreeNode:
    tiers = {own: node.tokens}
    for name, by_node in ends.items():
        if node.id in by_node:
            tiers[name] = min(max(by_node[node.id] - node.depth, 0), node.tokens)
    return msgspec.structs.replace(node, tiers=tiers)

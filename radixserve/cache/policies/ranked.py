"""Policies that are one number: the leaf of the smallest rank goes first."""

from __future__ import annotations

from collections.abc import Callable

from radixserve.cache.policies.policy import Line, Rank, Silent
from radixserve.cache.radix import Node


class Ranked(Silent):
    """Evicts the leaf of the smallest rank, of equal rank the older node.

    `rank` is asked when a leaf is offered. It should depend on what cannot change until the node is
    leased again (last_use, uses, born), not on the length, which truncation changes.
    """

    def __init__(self, rank: Callable[[Node], Rank]) -> None:
        self.rank = rank
        self._line = Line()

    def offer(self, leaf: Node) -> None:
        self._line.add(leaf, self.rank(leaf))

    def withdraw(self, leaf: Node) -> None:
        self._line.remove(leaf)

    def victim(self) -> Node | None:
        return self._line.first if self._line else None

    def check(self, leaves: list[Node]) -> None:
        expected = sorted(leaves, key=lambda leaf: (self.rank(leaf), leaf.serial))
        assert list(self._line) == expected, "the leaves are not in the policy's order"
        self._line.check()


def least_recently_used() -> Ranked:
    """Evicts the leaf whose last lease was released longest ago."""
    return Ranked(lambda leaf: leaf.last_use)


def least_frequently_used() -> Ranked:
    """Evicts the leaf with the fewest uses, of equally many the least recently used one."""
    return Ranked(lambda leaf: (leaf.uses, leaf.last_use))


def first_in() -> Ranked:
    """Evicts the leaf that was published first; the halves of a split are as old as the whole."""
    return Ranked(lambda leaf: leaf.born)

"""SIEVE (Zhang, Yang, Yue, Vigfusson and Rashmi, NSDI 2024): first in, first out with a hand that
passes over what was used since it came by, and evicts the next leaf that was not.
"""

from __future__ import annotations

from radixserve.cache.policies.policy import Line, Silent
from radixserve.cache.radix import Node


class Sieve(Silent):
    """Leaves stay in the order in which they came, and the hand moves from the oldest to the
    newest, then begins again.

    The hand clears the mark of every leaf that it passes, and each mark was set by a use, so
    `victim` costs O(log leaves) for each use. `seen` of a node is the number of its uses when the
    hand passed; a node that has more by now is marked. A parent gets the uses of its children when
    they are gone, so that it is marked when its turn comes.
    """

    def __init__(self) -> None:
        self._line = Line()
        self._tickets = 0
        self._hand = 0  # the ticket at which the search begins

    def offer(self, leaf: Node) -> None:
        if not leaf.ticket:
            self._tickets += 1
            leaf.ticket, leaf.seen = self._tickets, leaf.uses
        self._line.add(leaf, leaf.ticket)

    def withdraw(self, leaf: Node) -> None:
        self._line.remove(leaf)

    def victim(self) -> Node | None:
        """The next leaf without a mark, to which the hand moves."""
        if not self._line:
            return None
        leaf = self._line.since(self._hand) or self._line.first
        while leaf.seen != leaf.uses:
            leaf.seen = leaf.uses
            leaf = self._line.since(leaf.ticket + 1) or self._line.first
        self._hand = leaf.ticket
        return leaf

    def evicts(self, leaf: Node, num_tokens: int) -> None:
        if num_tokens == leaf.num_tokens:
            newer = self._line.since(leaf.ticket + 1)
            self._hand = newer.ticket if newer is not None else 0

    def check(self, leaves: list[Node]) -> None:
        expected = sorted(leaves, key=lambda leaf: (leaf.ticket, leaf.serial))
        assert list(self._line) == expected, "the leaves are not in the policy's order"
        self._line.check()

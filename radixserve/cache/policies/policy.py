"""What a policy of eviction is: it keeps the leaves that may be evicted, and says which goes next.

A policy knows nodes and their counts. It does not know pins, leases or slots: the evictor
(eviction.py) tells it which leaves may go, counts uses, and takes the leaves out of the tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from sortedcontainers import SortedList

from radixserve.cache.ghosts import CHUNK
from radixserve.cache.radix import Node
from radixserve.prefix import Prefix

Rank = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """The sizes for which a policy is made. A token of a simulated cache may stand for many."""

    num_slots: int
    chunk: int = CHUNK  # tokens: what is remembered of evicted prefixes is remembered by the chunk
    even_depth: int = 65_536
    """Tokens before a token whose attention costs as much as all else: from 8,000 in a model of
    half a billion parameters to 50,000 in one of 70. The smaller, the more hits are given up for
    deep ones.
    """


class Policy(Protocol):
    """The order of eviction of one cache. Every call costs O(log leaves), but for `recall`."""

    def offer(self, leaf: Node) -> None:
        """Take in a leaf that can be evicted from now on: it is not pinned and has no children."""
        ...

    def withdraw(self, leaf: Node) -> None:
        """Let go of a leaf that was offered, because it is pinned now or was evicted."""
        ...

    def victim(self) -> Node | None:
        """The leaf that goes next, still offered; None if there is none."""
        ...

    def hit(self, node: Node, num_tokens: int, now: int) -> None:
        """A lease takes the path to `node` and the first `num_tokens` tokens of its edge from the
        cache, at the time `now`. Called before the node is split or pinned.
        """
        ...

    def used(self, node: Node) -> None:
        """A lease that ended in `node` is released; its last use and its uses are up to date."""
        ...

    def evicts(self, leaf: Node, num_tokens: int) -> None:
        """The last `num_tokens` tokens of `leaf` are dropped now, for want of room."""
        ...

    def recall(self, prefix: Prefix, depth: int) -> int:
        """How often the tokens of `prefix` behind the first `depth` were used before they were
        evicted; 0 if nothing is remembered of them. A lease is about to compute them. O(tokens).
        """
        ...

    def resize(self, num_slots: int) -> None:
        """The cache has so many slots from now on."""
        ...

    def check(self, leaves: list[Node]) -> None:
        """Assert that `leaves`, and no others, are offered, and lie in order; O(leaves)."""
        ...


class Line:
    """Leaves in the order of their ranks, those of equal rank in the order of their creation.

    The rank is that of the moment in which the leaf is added; it must not change until then.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self._places: SortedList = SortedList()  # of Node.place

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Node]:
        return (leaf for _, _, leaf in self._places)

    @property
    def first(self) -> Node:
        """The leaf of the smallest rank."""
        leaf: Node = self._places[0][2]
        return leaf

    @property
    def last(self) -> Node:
        """The leaf of the greatest rank."""
        leaf: Node = self._places[-1][2]
        return leaf

    def since(self, rank: Rank) -> Node | None:
        """The first leaf of `rank` or a greater one; None if there is none."""
        index = self._places.bisect_left((rank,))
        return self._places[index][2] if index < len(self._places) else None

    def add(self, leaf: Node, rank: Rank) -> None:
        """Line `leaf` up."""
        assert leaf.place is None, "a leaf stands in one line at a time"
        leaf.place = (rank, leaf.serial, leaf)
        self._places.add(leaf.place)
        self.num_tokens += leaf.num_tokens

    def remove(self, leaf: Node) -> None:
        """Take `leaf` out; it has as many tokens as when it was added."""
        self._places.remove(leaf.place)
        leaf.place = None
        self.num_tokens -= leaf.num_tokens

    def check(self) -> None:
        """Assert order, places and the count of tokens."""
        places = list(self._places)
        assert places == sorted(places), "the leaves are not in order"
        assert all(place is place[2].place for place in places), "a leaf has another place"
        assert self.num_tokens == sum(leaf.num_tokens for leaf in self), "tokens are miscounted"


class Silent(Policy, Protocol):
    """A policy that remembers nothing but the leaves that are offered."""

    def hit(self, node: Node, num_tokens: int, now: int) -> None:
        """Nothing is learned from it."""
        return

    def used(self, node: Node) -> None:
        """Nothing is learned from it."""
        return

    def evicts(self, leaf: Node, num_tokens: int) -> None:
        """Nothing is remembered of it."""
        return

    def recall(self, prefix: Prefix, depth: int) -> int:
        """Nothing was remembered."""
        return 0

    def resize(self, num_slots: int) -> None:
        """The size is of no account."""
        return

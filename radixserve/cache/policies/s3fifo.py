"""S3-FIFO (Yang, Zhang, Qiu, Yue and Rashmi, SOSP 2023): a small queue for what is new, a main
queue for what proved useful, and a memory of what the small queue let go.
"""

from __future__ import annotations

from radixserve.cache.ghosts import Ghosts
from radixserve.cache.policies.policy import Line, Scale, Silent
from radixserve.cache.radix import Node, path_prefix
from radixserve.prefix import Prefix

SMALL_SHARE = 0.1
ENOUGH_HITS = 2  # of a leaf in the small queue, to go on to the main one
MOST_HITS = 3  # that count

_SMALL, _MAIN = 0, 1


class S3FIFO(Silent):
    """Both queues are first in, first out. A leaf that was hit does not go, but to the end of the
    main queue; hits are spent on it, so `victim` costs O(log leaves) for each use.

    `seen` of a node is how many of its uses are spent, that of its creator included.
    """

    def __init__(self, scale: Scale) -> None:
        self._queues = (Line(), Line())
        self._tickets = 0
        self._ghosts: Ghosts[None] = Ghosts(scale.chunk)
        self._most_ghosts = scale.num_slots  # tokens

    def offer(self, leaf: Node) -> None:
        if not leaf.ticket:
            leaf.seen = leaf.uses
            self._line_up(leaf, _MAIN if leaf.before else _SMALL)
        else:
            self._queues[leaf.queue].add(leaf, leaf.ticket)

    def _line_up(self, leaf: Node, queue: int) -> None:
        """Put `leaf` at the end of a queue."""
        self._tickets += 1
        leaf.ticket, leaf.queue = self._tickets, queue
        self._queues[queue].add(leaf, leaf.ticket)

    def withdraw(self, leaf: Node) -> None:
        self._queues[leaf.queue].remove(leaf)

    def victim(self) -> Node | None:
        """The first leaf without hits, from the small queue while that is not small."""
        small, main = self._queues
        while small or main:
            full = small.num_tokens >= SMALL_SHARE * (small.num_tokens + main.num_tokens)
            leaf = small.first if small and (full or not main) else main.first
            hits = min(leaf.uses - leaf.seen, MOST_HITS)
            if hits < (ENOUGH_HITS if leaf.queue == _SMALL else 1):
                return leaf
            leaf.seen = leaf.uses if leaf.queue == _SMALL else leaf.uses - hits + 1
            self.withdraw(leaf)
            self._line_up(leaf, _MAIN)
        return None

    def evicts(self, leaf: Node, num_tokens: int) -> None:
        if leaf.queue == _SMALL:
            self._ghosts.add(path_prefix(leaf), num_tokens, None)
            self._ghosts.shrink(self._most_ghosts)

    def recall(self, prefix: Prefix, depth: int) -> int:
        return 1 if self._ghosts.take(prefix, depth) else 0

    def resize(self, num_slots: int) -> None:
        self._most_ghosts = num_slots
        self._ghosts.shrink(num_slots)

    def check(self, leaves: list[Node]) -> None:
        for queue, line in enumerate(self._queues):
            expected = [leaf for leaf in leaves if leaf.queue == queue]
            expected.sort(key=lambda leaf: (leaf.ticket, leaf.serial))
            assert list(line) == expected, "the leaves are not in the policy's order"
            line.check()
        assert self._ghosts.num_tokens <= self._most_ghosts, "too much is remembered"

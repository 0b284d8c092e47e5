"""Segmented LRU (Karedla, Love and Wherry, 1994): what was used twice is kept apart from what was
used once, so that a scan passes through without flushing it.
"""

from __future__ import annotations

from radixserve.cache.policies.policy import Line, Scale, Silent
from radixserve.cache.radix import Node

PROTECTED_SHARE = 0.8

_PROBATION, _PROTECTED = 0, 1


class SegmentedLRU(Silent):
    """Two lines in the order of last use; the leaf that goes next is the first on probation.

    A leaf that was used more than once is protected. If more than four fifths of the slots are
    protected, the least recently used leaf of them goes to the end of the probation line.
    """

    def __init__(self, scale: Scale) -> None:
        self._lines = (Line(), Line())
        self._now = 0
        self.resize(scale.num_slots)

    def offer(self, leaf: Node) -> None:
        """Line `leaf` up where it belongs; if that protects too much, demote others."""
        self._now = max(self._now, leaf.last_use)
        if leaf.ticket < leaf.last_use:  # otherwise it was not used since it stood in a line
            leaf.ticket, leaf.queue = leaf.last_use, _PROTECTED if leaf.uses > 1 else _PROBATION
        self._lines[leaf.queue].add(leaf, leaf.ticket)
        self._demote()

    def _demote(self) -> None:
        protected = self._lines[_PROTECTED]
        while protected.num_tokens > self._most:
            demoted = protected.first
            protected.remove(demoted)
            demoted.ticket, demoted.queue = self._now, _PROBATION
            self._lines[_PROBATION].add(demoted, demoted.ticket)

    def withdraw(self, leaf: Node) -> None:
        self._lines[leaf.queue].remove(leaf)

    def victim(self) -> Node | None:
        return next((line.first for line in self._lines if line), None)

    def resize(self, num_slots: int) -> None:
        self._most = int(PROTECTED_SHARE * num_slots)
        self._demote()

    def check(self, leaves: list[Node]) -> None:
        for queue, line in enumerate(self._lines):
            expected = [leaf for leaf in leaves if leaf.queue == queue]
            expected.sort(key=lambda leaf: (leaf.ticket, leaf.serial))
            assert list(line) == expected, "the leaves are not in the policy's order"
            line.check()
        assert self._lines[_PROTECTED].num_tokens <= self._most, "too much is protected"

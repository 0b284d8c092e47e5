"""Like ARC (Megiddo and Modha, FAST 2003): recent and frequent leaves apart, and memories of what
each side let go, which decide how much room either gets.
"""

from __future__ import annotations

from radixserve.cache.ghosts import Ghosts
from radixserve.cache.policies.policy import Line, Scale, Silent
from radixserve.cache.radix import Node, path_prefix
from radixserve.prefix import Prefix

_ONCE, _MORE = 0, 1


class AdaptiveReplacement(Silent):
    """Leaves that were used once, and those that were used more often, each by their last use.

    `_target` tokens are meant for the leaves that were used once. If one of them comes back soon
    after it went, the target grows; if one of the others does, it shrinks. What came back counts as
    used more than once. Unlike in the original, sizes are tokens of leaves; K/V of inner nodes
    joins a side when its turn comes.
    """

    def __init__(self, scale: Scale) -> None:
        self._num_slots = scale.num_slots
        self._lines = (Line(), Line())
        self._ghosts: tuple[Ghosts[int], Ghosts[int]] = (Ghosts(scale.chunk), Ghosts(scale.chunk))
        self._target = 0.0
        self._frequent_returns = False  # what is computed now was let go by the frequent side

    def offer(self, leaf: Node) -> None:
        leaf.queue = _MORE if leaf.before + leaf.uses > 1 else _ONCE
        self._lines[leaf.queue].add(leaf, leaf.last_use)
        self._trim()

    def withdraw(self, leaf: Node) -> None:
        self._lines[leaf.queue].remove(leaf)

    def victim(self) -> Node | None:
        once, more = self._lines
        excess = once.num_tokens - self._target
        if once and (not more or excess > 0 or (excess == 0 and self._frequent_returns)):
            return once.first
        return more.first if more else None

    def evicts(self, leaf: Node, num_tokens: int) -> None:
        uses = leaf.before + leaf.uses
        self._ghosts[leaf.queue].add(path_prefix(leaf), num_tokens, uses)

    def recall(self, prefix: Prefix, depth: int) -> int:
        """See `Policy.recall`; the target moves towards the side that let go what comes back."""
        sizes = [max(ghosts.num_tokens, 1) for ghosts in self._ghosts]
        uses = [ghosts.take(prefix, depth) for ghosts in self._ghosts]
        tokens = [len(each) * self._ghosts[0].chunk for each in uses]
        self._target += tokens[_ONCE] * max(1.0, sizes[_MORE] / sizes[_ONCE])
        self._target -= tokens[_MORE] * max(1.0, sizes[_ONCE] / sizes[_MORE])
        self._target = min(max(self._target, 0.0), float(self._num_slots))
        self._frequent_returns = tokens[_MORE] > 0
        return max(uses[_ONCE] + uses[_MORE], default=0)

    def _trim(self) -> None:
        """Remember no more than the original: as much again as fits, and of what was used once
        only as much as leaves fit beside it.
        """
        once, more = self._ghosts
        once.shrink(self._num_slots - self._lines[_ONCE].num_tokens)
        kept = sum(line.num_tokens for line in self._lines)
        more.shrink(2 * self._num_slots - kept - once.num_tokens)

    def resize(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._target = min(self._target, float(num_slots))
        self._trim()

    def check(self, leaves: list[Node]) -> None:
        for queue, line in enumerate(self._lines):
            expected = [leaf for leaf in leaves if leaf.queue == queue]
            expected.sort(key=lambda leaf: (leaf.last_use, leaf.serial))
            assert list(line) == expected, "the leaves are not in the policy's order"
            line.check()
        assert 0 <= self._target <= self._num_slots, "the target is no number of slots"

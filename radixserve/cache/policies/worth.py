"""Our own policy: the leaf goes whose K/V is worth least, where worth is the computing that it can
be expected to save from now on, for the memory and the time that it takes.

It is related to LHD (Beckmann, Chen and Cidon, NSDI 2018), which ranks objects by expected hits for
space and time. Here the classes of objects are those that a prefix cache can see (`Worth`), the
computing saved depends on the depth, and evicted prefixes are remembered, so that the law of reuse
is seen beyond what fits.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate, pairwise

from radixserve.cache.ghosts import Ghosts
from radixserve.cache.policies.policy import Line, Policy, Scale
from radixserve.cache.radix import Node, path_prefix
from radixserve.prefix import Prefix

MOST_USES = 4
"""A leaf of so many uses is in one class with those of more."""

REMEMBERED = 16
"""Tokens of evicted prefixes that are remembered, in caches: seldom more than that comes back."""

LEARNED = 32
"""Tokens, in caches, after which what was learned counts half."""

_GROWTH = 1.25  # from one age, or weight, that is told apart to the next
_LEVELS = 8  # of weights
_NUM_AGES = 40
_AGES = list(accumulate((max(1, int(_GROWTH**each)) for each in range(_NUM_AGES)), initial=0))
_WIDTHS = [stop - start for start, stop in pairwise(_AGES)]
_EVERY = 64  # uses, after which indices are computed anew
_PRIOR = 0.1  # tokens, in caches, that are taken to have been seen at the start
_HIT = -1  # instead of a time of last use: the wait since then is over
_PRIOR_SHARES = [0.05 * 0.9**age for age in range(_NUM_AGES)]  # of them, used again, by age: half


class ReuseLaw:
    """How soon K/V of one class is used again, as seen so far, in tokens.

    `index[a]` is the best rate of hits that keeping a token of age a can bring: the greatest ratio,
    over all times to keep it, of the chance that it is used by then to the time that it is expected
    to stay (its Gittins index). Before anything is seen the rate falls with the age, which gives
    the order of least recent use.
    """

    def __init__(self, prior: float) -> None:
        # Tokens that could be used again, by the age at which they first could, and those of them
        # that were, by the age at which they were.
        self.came = [prior] + [0.0] * (_NUM_AGES - 1)
        self.again = [prior * share for share in _PRIOR_SHARES]
        self.index: list[float] = []
        self.compute()

    def forget_half(self) -> None:
        """Let what is seen from now on count twice as much as what was seen before."""
        self.came = [each / 2 for each in self.came]
        self.again = [each / 2 for each in self.again]

    def compute(self) -> None:
        """Update `index`; O(ages squared)."""
        left, waits = 0.0, []
        for came, used, width in zip(self.came, self.again, _WIDTHS, strict=True):
            left = max(left + came, used)  # what was forgotten or cut may make it less
            waits.append((left - used / 2) * width)
            left -= used
        self.index = [self._best_rate(waits, age) for age in range(_NUM_AGES)]

    def _best_rate(self, waits: list[float], age: int) -> float:
        best = hits = time = 0.0
        for used, wait in zip(self.again[age:], waits[age:], strict=True):
            hits += used
            time += wait
            best = max(best, hits / time if time else 0.0)
        return best


class Worth(Policy):
    """Leaves by number of uses and by depth. A line holds those of one class by their last use.

    The law of reuse is learned for each number of uses, from the time between a use and the next
    one, also of what was evicted in between. The index of a leaf's law at its age, times what a
    token of its depth costs to compute, is the worth of a token. Within a line the oldest leaf is
    usually worth least; it is the newest one if what was just used is seldom used again soon: then
    new leaves go and old ones stay, which no scan can flush. So both ends of every line are
    compared: O(classes), and O(log leaves) for the line.

    Time is counted in uses.
    """

    def __init__(self, scale: Scale) -> None:
        self._scale = scale
        self._lines = [Line() for _ in range(_LEVELS * (MOST_USES + 1))]
        self._laws = [ReuseLaw(_PRIOR * scale.num_slots) for _ in range(MOST_USES + 1)]
        self._ghosts: Ghosts[tuple[int, int, int]] = Ghosts(scale.chunk)  # uses, last use, start
        self._now = 0
        self._learned = 0  # tokens that came since half was forgotten

    def offer(self, leaf: Node) -> None:
        """Line `leaf` up in its class, and count that it waits, once for each use."""
        level = min(int(math.log(self._cost(leaf), _GROWTH)), _LEVELS - 1)
        uses = min(leaf.before + leaf.uses, MOST_USES)
        leaf.queue = level * (MOST_USES + 1) + uses
        self._lines[leaf.queue].add(leaf, leaf.last_use)
        if leaf.ticket != leaf.last_use:
            leaf.ticket = leaf.last_use
            self._laws[uses].came[_age_class(self._now - leaf.last_use)] += leaf.num_tokens
            self._learned += leaf.num_tokens

    def withdraw(self, leaf: Node) -> None:
        self._lines[leaf.queue].remove(leaf)

    def victim(self) -> Node | None:
        """Of the oldest and the newest leaf of every class, the one that is worth least."""
        least, chosen = math.inf, None
        for queue, line in enumerate(self._lines):
            if line:
                level, uses = divmod(queue, MOST_USES + 1)
                weight, index = _GROWTH**level, self._laws[uses].index
                for leaf in (line.first, line.last):
                    worth = weight * index[_age_class(self._now - leaf.last_use)]
                    if worth < least:
                        least, chosen = worth, leaf
        return chosen

    def _cost(self, leaf: Node) -> float:
        """The cost to compute the last token of `leaf`, in that of a sequence's first token."""
        return 1 + (leaf.start + leaf.num_tokens) / self._scale.even_depth

    def hit(self, node: Node, num_tokens: int, now: int) -> None:
        """Learn how long a leaf waited, once for each use that it waited for."""
        if node.children or node.ticket != node.last_use:
            return
        self._learn(node.before + node.uses, now - node.last_use, num_tokens)
        if num_tokens == node.num_tokens:  # else its lower part waits on
            node.ticket = _HIT

    def _learn(self, uses: int, age: int, num_tokens: int) -> None:
        self._laws[min(uses, MOST_USES)].again[_age_class(age)] += num_tokens

    def used(self, node: Node) -> None:
        """Note the time; now and then let old observations fade, and compute the indices anew."""
        self._now = node.last_use
        if self._learned > LEARNED * self._scale.num_slots:
            self._learned = 0
            for law in self._laws:
                law.forget_half()
        if self._now % _EVERY == 0:
            for law in self._laws:
                law.compute()

    def evicts(self, leaf: Node, num_tokens: int) -> None:
        about = (leaf.before + leaf.uses, leaf.last_use, leaf.start)
        self._ghosts.add(path_prefix(leaf), num_tokens, about)
        self._ghosts.shrink(REMEMBERED * self._scale.num_slots)

    def recall(self, prefix: Prefix, depth: int) -> int:
        """See `Policy.recall`; what comes back waited until now."""
        remembered, chunk = self._ghosts.take(prefix, depth), self._ghosts.chunk
        for number, (uses, last_use, start) in enumerate(remembered, start=depth // chunk + 1):
            self._learn(uses, self._now - last_use, min(chunk, number * chunk - start))
        return max((uses for uses, _, _ in remembered), default=0)

    def resize(self, num_slots: int) -> None:
        """See `Policy.resize`; what was learned stays."""
        self._scale = replace(self._scale, num_slots=num_slots)
        self._ghosts.shrink(REMEMBERED * num_slots)

    def check(self, leaves: list[Node]) -> None:
        """See `Policy.check`."""
        offered = sorted(
            (leaf for line in self._lines for leaf in line), key=lambda leaf: leaf.serial
        )
        assert offered == sorted(leaves, key=lambda leaf: leaf.serial), "other leaves are offered"
        for queue, line in enumerate(self._lines):
            line.check()
            assert all(leaf.queue == queue for leaf in line), "a leaf stands in another line"
            times = [leaf.last_use for leaf in line]
            assert times == sorted(times), "the leaves are not in the policy's order"
        assert self._ghosts.num_tokens <= REMEMBERED * self._scale.num_slots, "memory has no bound"


def _age_class(age: int) -> int:
    return min(bisect_right(_AGES, age) - 1, _NUM_AGES - 1)

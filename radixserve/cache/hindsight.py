"""What more memory would have brought: tokens that were evicted and then computed again, by how
large the budget had to be to keep them.

A layer over a policy of eviction, which decides alone what goes. Evicted chunks are remembered in
the order in which they went, as in `ghosts`, in three stages:

    a budget of    1                  1.5             2                              4
    has            | cached           | went last     | before that  | before that   |  forgotten

What is evicted enters at the left, and what overflows a stage goes to the next. If a lease must
compute a chunk that is remembered, a budget that reaches to the end of its stage had kept it. For
least recently used this is exact, up to the size of a chunk, because a larger cache then holds what
a smaller one does and what went from it last; for other policies it is an estimate.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import accumulate
from typing import Literal

from radixserve.cache.counters import GHOST_HIT_TOKENS, RECOMPUTED_TOKENS
from radixserve.cache.ghosts import CHUNK, chunk_keys
from radixserve.cache.policies.policy import Policy
from radixserve.cache.radix import Node, path_prefix
from radixserve.declared import Numbers
from radixserve.prefix import Prefix

BUDGETS = {"1.5x": 0.5, "2x": 0.5, "4x": 2.0}
"""The budgets by name, and the size of each stage in budgets."""


Counted = Literal["leases", "misses"]
"""What tokens count when they come back: those of new leases, or those that `missed` tells."""


class Hindsight:
    """A `Policy` that counts what comes back. An eviction and a lease cost O(depth) more."""

    def __init__(
        self, policy: Policy, num_slots: int, chunk: int = CHUNK, counted: Counted = "leases"
    ) -> None:
        """`num_slots` is the budget of the cache. Counted are tokens that leases have to compute;
        or, where these may come from elsewhere, those that were asked for in vain (`missed`).
        """
        self.policy = policy
        self._counted = counted
        self.recomputed_tokens = 0  # evicted, and computed again while it was remembered
        self._came_back = dict.fromkeys(BUDGETS, 0)  # tokens by stage
        self._chunk = chunk
        self._stages: list[OrderedDict[int, None]] = [OrderedDict() for _ in BUDGETS]
        self._most = self._sizes(num_slots)

    def _sizes(self, num_slots: int) -> list[int]:
        """How many chunks each stage remembers."""
        return [int(share * num_slots) // self._chunk for share in BUDGETS.values()]

    @property
    def ghost_hits(self) -> dict[str, int]:
        """Tokens that would have hit with each budget, and had to be computed."""
        return dict(zip(BUDGETS, accumulate(self._came_back.values()), strict=True))

    def numbers(self) -> Numbers:
        """What it counts, as declared in `cache.counters`."""
        hits = {GHOST_HIT_TOKENS.key(name): count for name, count in self.ghost_hits.items()}
        return {RECOMPUTED_TOKENS.key(): self.recomputed_tokens, **hits}

    def evicts(self, leaf: Node, num_tokens: int) -> None:
        """See `Policy.evicts`; remembers the chunks that end in these tokens."""
        end = leaf.start + leaf.num_tokens
        first = (end - num_tokens) // self._chunk
        if first < end // self._chunk:
            keys = list(chunk_keys(path_prefix(leaf), self._chunk))
            for key in reversed(keys[first:]):
                self._remember(key)
        self.policy.evicts(leaf, num_tokens)

    def _remember(self, key: int) -> None:
        for stage in self._stages:
            stage.pop(key, None)
        self._stages[0][key] = None
        self._overflow()

    def _overflow(self) -> None:
        """Move on what is too much for a stage."""
        for number, (stage, most) in enumerate(zip(self._stages, self._most, strict=True)):
            while len(stage) > most:
                oldest, _ = stage.popitem(last=False)
                if number + 1 < len(self._stages):
                    self._stages[number + 1][oldest] = None

    def recall(self, prefix: Prefix, depth: int) -> int:
        """See `Policy.recall`; counts the tokens that follow the first `depth` and are remembered
        without a gap.
        """
        self._return(prefix, depth, is_counted=self._counted == "leases")
        return self.policy.recall(prefix, depth)

    def missed(self, prefix: Prefix, depth: int) -> None:
        """Somebody has asked for `prefix`, and only its first `depth` tokens are there: count those
        that follow and are remembered without a gap. O(tokens of `prefix`).
        """
        self._return(prefix, depth, is_counted=True)

    def _return(self, prefix: Prefix, depth: int, *, is_counted: bool) -> None:
        """Forget the evictions of the tokens that follow the first `depth`."""
        if not any(self._stages):
            return
        names, farthest = list(BUDGETS), 0
        for number, key in enumerate(chunk_keys(prefix, self._chunk)):
            if number < depth // self._chunk:
                continue
            at = next((at for at, stage in enumerate(self._stages) if key in stage), None)
            if at is None:
                return
            del self._stages[at][key]
            if not is_counted:
                continue
            farthest = max(farthest, at)  # a prefix hits only as far as all of it is there
            num_tokens = (number + 1) * self._chunk - max(depth, number * self._chunk)
            self._came_back[names[farthest]] += num_tokens
            self.recomputed_tokens += num_tokens

    def resize(self, num_slots: int) -> None:
        """See `Policy.resize`. What is remembered of evictions stays in their order, so that the
        figures are off until as many tokens again were evicted.
        """
        self._most = self._sizes(num_slots)
        self._overflow()
        self.policy.resize(num_slots)

    # A policy's other calls: each is passed on.

    def offer(self, leaf: Node) -> None:
        """See `Policy.offer`."""
        self.policy.offer(leaf)

    def withdraw(self, leaf: Node) -> None:
        """See `Policy.withdraw`."""
        self.policy.withdraw(leaf)

    def victim(self) -> Node | None:
        """See `Policy.victim`."""
        return self.policy.victim()

    def hit(self, node: Node, num_tokens: int, now: int) -> None:
        """See `Policy.hit`."""
        self.policy.hit(node, num_tokens, now)

    def used(self, node: Node) -> None:
        """See `Policy.used`."""
        self.policy.used(node)

    def check(self, leaves: list[Node]) -> None:
        """See `Policy.check`; also asserts that no more is remembered than the stages hold."""
        for stage, most in zip(self._stages, self._most, strict=True):
            assert len(stage) <= most, "a stage of what was evicted is too long"
        keys = [key for stage in self._stages for key in stage]
        assert len(keys) == len(set(keys)), "a chunk is in two stages"
        self.policy.check(leaves)

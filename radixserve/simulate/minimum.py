"""MIN, the clairvoyant policy (Belady, 1966), which knows what comes next.

After each request it keeps the blocks whose next use is the nearest. It need not keep what was just
used, and a block counts as a hit only if all blocks before it in the prompt hit, too. Of blocks
with the same next use the deeper ones go first. For objects no policy has more hits. For prefixes
a little more is possible, because MIN may keep a block of which one before it is gone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from radixserve.simulate.replay import Outcome, Traffic, outcome

NEVER = 1 << 62


def minimum(traffic: Traffic, budget: int, step: Callable[[], None]) -> Outcome:
    """The outcome of MIN with `budget` blocks; calls `step` after each prompt. O(blocks), times log
    blocks.
    """
    prompts = [memoryview(prompt.tokens).cast("i").tolist() for prompt in traffic.prompts]
    kept, lengths = _Kept(budget), []
    for prompt, nexts in zip(prompts, next_uses(prompts), strict=True):
        lengths.append(kept.leading(prompt))
        kept.use(prompt, nexts)
        step()
    return outcome(traffic, lengths)


def next_uses(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each block of each prompt, the number of the next prompt that has it, or NEVER."""
    latest: dict[int, int] = {}
    found: list[list[int]] = []
    for number in range(len(prompts) - 1, -1, -1):
        found.append([latest.get(block, NEVER) for block in prompts[number]])
        latest.update(dict.fromkeys(prompts[number], number))
    return found[::-1]


@dataclass(order=True, slots=True)
class _Use:
    """A block's next use; the farthest and deepest is the first in a heap."""

    far: int  # minus the number of the prompt
    deep: int  # minus the depth
    block: int


class _Kept:
    """The blocks that are kept. The heap also holds uses that have passed since."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._next: dict[int, int] = {}
        self._heap: list[_Use] = []

    def leading(self, prompt: Sequence[int]) -> int:
        """How many of the first blocks of `prompt` are kept."""
        return next((at for at, block in enumerate(prompt) if block not in self._next), len(prompt))

    def use(self, prompt: Sequence[int], nexts: Sequence[int]) -> None:
        """Keep these blocks until their next uses, as far as there is room."""
        for depth, (block, at) in enumerate(zip(prompt, nexts, strict=True)):
            if at == NEVER:
                self._next.pop(block, None)
            else:
                self._next[block] = at
                heapq.heappush(self._heap, _Use(-at, -depth, block))
        while len(self._next) > self._budget:
            use = heapq.heappop(self._heap)
            if self._next.get(use.block) == -use.far:
                del self._next[use.block]

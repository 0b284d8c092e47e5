"""Moves cached K/V out of the slots at the end of the pool, so that the memory there can be given
back when the budget has shrunk.

The slots that are held back are as many as the budget asks for, wherever they lie. Moving swaps
owners: K/V goes to a lower slot, free or held back, and its own slot is held back instead. What
leases hold stays where it is, because running requests know its slots.

    before    a a . b b | c - c d d -      | the budget; . free, - held back; d is leased
    after     a a c b b | c - - d d -      only one slot below the budget was there to swap with

Knows the tree and slots, no tensors: who makes it moves the K/V.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from radixserve.cache.kvcache import KVCache
from radixserve.cache.radix import Node
from radixserve.cache.second_slots import SecondSlots
from radixserve.cache.slots import runs_of, write_slots
from radixserve.step import Slots

Move = Callable[[Slots, Slots], None]
"""Copies K/V from slots to as many others."""


class Moving(Protocol):
    """What moves K/V away from the end of one pool."""

    moved_tokens: int  # since the beginning

    @property
    def end(self) -> int:
        """The first of the slots at the end of the pool that are all held back."""

    @property
    def is_needed(self) -> bool:
        """Whether slots are held back that do not lie at the end."""

    def work(self, num_nodes: int, num_tokens: int) -> bool:
        """Go on with a pass, or begin one: look at `num_nodes` nodes and move `num_tokens` tokens
        at most. False if the pass has ended.
        """


class SecondCompaction:
    """The same for the pool of second slots, of which leases hold some one by one."""

    def __init__(self, second: SecondSlots, move: Move) -> None:
        self._second, self._move = second, move
        self.moved_tokens = 0

    @property
    def end(self) -> int:
        return self._second.allocator.end

    @property
    def is_needed(self) -> bool:
        return self.end > self._second.allocator.num_slots

    def work(self, num_nodes: int, num_tokens: int) -> bool:
        """As in `Moving`; it looks at no nodes."""
        sources, targets = self._second.move_down(num_tokens)
        if len(sources):
            self._move(sources, targets)
        self.moved_tokens += len(sources)
        return len(sources) == num_tokens


class Compaction:
    """Passes over the tree of one cache, in parts between which it may change."""

    def __init__(self, cache: KVCache, move: Move) -> None:
        self._cache, self._move = cache, move
        self.moved_tokens = 0  # since the beginning
        self._to_visit: list[Node] = []

    @property
    def end(self) -> int:
        return self._cache.slots.allocator.end

    @property
    def is_needed(self) -> bool:
        return self.end > self._cache.slots.allocator.num_slots

    def work(self, num_nodes: int, num_tokens: int) -> bool:
        """Go on with a pass, or begin one: look at `num_nodes` nodes and move `num_tokens` tokens
        at most. False if the pass has ended.
        """
        cache, edge = self._cache, self._cache.slots.allocator.num_slots
        self._to_visit = self._to_visit or list(cache.tree.roots.values())
        moved: list[tuple[Node, list[int]]] = []
        while self._to_visit and num_nodes > 0 and num_tokens > 0:
            node = self._to_visit.pop()
            num_nodes -= 1
            if not cache.tree.is_findable(node):
                continue
            high = [] if node.pins else _places_from(node, edge)[:num_tokens]
            if high:
                moved.append((node, high))
                num_tokens -= len(high)
            else:
                self._to_visit += node.children.values()
        if moved:
            self._swap(moved)
        elif not self._to_visit:  # free slots at the end of the pool are held back in any case
            cache.slots.allocator.swap([])
        self._to_visit += [node for node, _ in moved]  # which may have more to move
        return bool(self._to_visit)

    def _swap(self, moved: list[tuple[Node, list[int]]]) -> None:
        """Move the tokens of nodes, given by their places in the nodes' edges."""
        sources = np.concatenate([_slots_of(node)[places] for node, places in moved])
        targets = np.empty(len(sources), np.int32)
        write_slots(self._cache.slots.allocator.swap(runs_of(sources)), targets)
        self._move(sources, targets)
        if self._cache.second is not None:
            self._cache.second.follow(sources, targets)
        self.moved_tokens += len(sources)
        for node, places in moved:
            slots = _slots_of(node)
            slots[places], targets = targets[: len(places)], targets[len(places) :]
            node.runs = runs_of(slots)


def _places_from(node: Node, edge: int) -> list[int]:
    """The places of the tokens whose slots are `edge` or higher."""
    if all(start + length <= edge for start, length in node.runs):
        return []
    places: list[int] = np.flatnonzero(_slots_of(node) >= edge).tolist()
    return places


def _slots_of(node: Node) -> Slots:
    slots = np.empty(node.num_tokens, np.int32)
    write_slots(node.runs, slots)
    return slots

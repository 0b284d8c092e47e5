"""Gives memory of a pool back to the system when the budget of its cache has shrunk.

Only what lies at the end of the pool can go, so cached K/V is moved away from there
(`cache.compaction`), a little between two steps. What running requests lease is waited for. Host
memory only: the memory of a CUDA device belongs to the pool from start to end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from radixserve.cache.compaction import Compaction, Move, Moving, SecondCompaction
from radixserve.cache.kvcache import KVCache
from radixserve.step import Slots
from radixserve.tensors.copies import read_slots, write_slots
from radixserve.tensors.kv import KVPool

NODES = 256  # looked at between two steps
TOKENS = 128  # moved between two steps, which takes some milliseconds
AGAIN_SECONDS = 1.0  # between two passes over the tree, while leases are waited for
LATEST_SECONDS = 60.0  # the same after many passes that moved nothing: what is pinned may stay long


class Trimming:
    """The memory of one pool in host memory."""

    def __init__(self, pool: KVPool, compaction: Callable[[Move], Moving]) -> None:
        """`compaction` makes what moves K/V within the pool."""
        self._pool = pool
        self._compaction = compaction(self._move)
        self._end = self._compaction.end  # the memory from this slot on was given back
        self._is_moving = False
        self._moved_tokens = 0  # before the present pass
        self._pause = AGAIN_SECONDS
        self._again = 0.0  # when the next pass may begin, in seconds of time.monotonic()

    def _move(self, sources: Slots, targets: Slots) -> None:
        write_slots(self._pool, targets, read_slots(self._pool, sources))

    @property
    def patience(self) -> float | None:
        """How many seconds to sleep at most before the next `work`; None: as long as nothing else
        happens.
        """
        if self._is_moving:
            return 0.0
        if not self._compaction.is_needed:
            return None
        return max(0.0, self._again - time.monotonic())

    def work(self) -> None:
        """To be called between two steps: move a little, and give back what can be given."""
        if self._compaction.is_needed and (self._is_moving or time.monotonic() >= self._again):
            self._is_moving = self._compaction.work(NODES, TOKENS)
            if not self._is_moving:
                self._end_pass()
        else:
            self._is_moving = False
        end = self._compaction.end
        if end < self._end:
            self._pool.release(end)
        self._end = end

    def _end_pass(self) -> None:
        """Wait for the next pass, twice as long as before if this one moved nothing."""
        moved = self._compaction.moved_tokens - self._moved_tokens
        self._moved_tokens = self._compaction.moved_tokens
        self._pause = AGAIN_SECONDS if moved else min(2 * self._pause, LATEST_SECONDS)
        self._again = time.monotonic() + self._pause


def trimmings_of(cache: KVCache, pool: KVPool) -> list[Trimming]:
    """One for each part of a cache's pool; the first one is for the slots."""
    made = [Trimming(pool, partial(Compaction, cache))]
    if cache.second is not None and pool.second is not None:
        made.append(Trimming(pool.second.pool, partial(SecondCompaction, cache.second)))
    return made

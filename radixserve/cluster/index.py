"""Which server has which blocks of tokens.

A block is named by a key that stands for all tokens up to its end, such as the hash of a KV event.
An entry is one integer whose bit s says that server s has the block, so a look-up intersects the
sets of all servers at once:

    prompt          block a   block b   block c
    entry           0111      0101      0001       servers 2, 1, 0: have a; 2 and 0 have b, too; ...
    have all so far 0111      0101      0001       depths: server 0: 3, server 2: 2, server 1: 1
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class PrefixIndex:
    """The blocks of all servers that a gateway knows of."""

    def __init__(self, most_blocks: int) -> None:
        """With more than `most_blocks` the block that has been known for longest is forgotten. An
        entry takes some 100 bytes.
        """
        self._most = most_blocks
        self._servers: dict[int, int] = {}  # by key; bit s is server s

    def __len__(self) -> int:
        return len(self._servers)

    def store(self, server: int, keys: Iterable[int]) -> None:
        """`server` has these blocks."""
        bit = 1 << server
        for key in keys:
            self._servers[key] = self._servers.get(key, 0) | bit
        while len(self._servers) > self._most:
            del self._servers[next(iter(self._servers))]

    def remove(self, server: int, keys: Iterable[int]) -> None:
        """`server` does not have these blocks any more."""
        for key in keys:
            left = self._servers.get(key, 0) & ~(1 << server)
            if left:
                self._servers[key] = left
            else:
                self._servers.pop(key, None)

    def clear(self, server: int) -> None:
        """`server` has nothing any more. O(blocks of all servers)."""
        others = ~(1 << server)
        self._servers = {key: have & others for key, have in self._servers.items() if have & others}

    def depths(self, keys: Sequence[int]) -> dict[int, int]:
        """How many blocks of a prompt, from the first on, each server has; servers without are left
        out. O(blocks of the prompt that any server has).
        """
        depths: dict[int, int] = {}
        have = -1
        for depth, key in enumerate(keys):
            still = have & self._servers.get(key, 0)
            if depth and still != have:
                depths |= dict.fromkeys(_bits(have & ~still), depth)
            have = still
            if not have:
                return depths
        return depths | dict.fromkeys(_bits(have), len(keys)) if keys else depths


def _bits(servers: int) -> Iterable[int]:
    while servers:
        lowest = servers & -servers
        yield lowest.bit_length() - 1
        servers ^= lowest

"""The prefixes that are pinned, in the cache of a tier: held by leases, so that they are not
evicted, as far as a share of the slots goes.
"""

from __future__ import annotations

from collections.abc import Sequence

from radixserve.cache.kvcache import KVCache, Lease
from radixserve.cache.radix import Node
from radixserve.prefix import Prefix


class KeptPrefixes:
    """Leases on what is there of the pinned prefixes, the first ones before others."""

    def __init__(self, cache: KVCache, most_tokens: int) -> None:
        self._cache, self._most = cache, most_tokens
        # how many tokens of each were there at the last look, whether or not they could be held
        self._found: dict[Prefix, int] = {}
        self._leases: list[Lease] = []

    def leases(self) -> list[Lease]:
        """What is held."""
        return list(self._leases)

    def keep(self, prefixes: Sequence[Prefix]) -> None:
        """Hold these from now on, and no others. O(prefixes)."""
        before, self._leases = self._leases, []
        self._found = {each: self._cache.match(each) for each in prefixes}
        self._hold()
        for lease in before:
            lease.release()

    def limit(self, most_tokens: int) -> None:
        """Hold at most `most_tokens` tokens from now on."""
        self._most = most_tokens
        self.keep(list(self._found))

    def came(self, prefix: Prefix) -> None:
        """K/V of `prefix` was added: hold what is new of pinned prefixes. O(prefixes)."""
        if any(prefix.shares_more(each, found) for each, found in self._found.items()):
            self.keep(list(self._found))

    def dropped(self) -> None:
        """K/V was dropped: let go of what nobody finds any more."""
        if any(lease.is_withheld for lease in self._leases):
            self.keep(list(self._found))

    def _hold(self) -> None:
        """Take a lease for each prefix of which all that was found has room."""
        nodes: set[Node] = set()
        left = self._most
        for prefix in (each for each, found in self._found.items() if found):
            lease = self._cache.hold(prefix)
            path = _above(lease.node, nodes)
            num_new = sum(node.num_tokens for node in path)
            if num_new > left:
                lease.release()
                continue
            nodes.update(path)
            left -= num_new
            self._leases.append(lease)


def _above(node: Node | None, known: set[Node]) -> list[Node]:
    """`node` and the nodes above it, as far as they are not `known`."""
    path: list[Node] = []
    while node is not None and node not in known:
        path.append(node)
        node = node.parent
    return path

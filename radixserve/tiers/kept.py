"""The prefixes that are pinned, in the cache of a tier: held by leases, so that they are not
evicted, as far as a share of the slots goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from radixserve.cache.kvcache import KVCache, Lease
from radixserve.cache.radix import Node
from radixserve.prefix import Prefix


class KeptPrefixes:
    """Leases on what is there of the pinned prefixes, the first ones before others."""

    def __init__(self, cache: KVCache, most_tokens: int) -> None:
        self._cache, self._most = cache, most_tokens
        self._leases: dict[Prefix, Lease | None] = {}
        self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that are held; what several hold counts once."""
        return self._num_tokens

    def leases(self) -> list[Lease]:
        """What is held."""
        return [lease for lease in self._leases.values() if lease is not None]

    def keep(self, prefixes: Sequence[Prefix]) -> None:
        """Hold these from now on, and no others. O(prefixes)."""
        before, self._leases = self._leases, dict.fromkeys(prefixes)
        self._num_tokens = self._held_anew()
        _release(before.values())

    def limit(self, most_tokens: int) -> None:
        """Hold at most `most_tokens` tokens from now on."""
        self._most = most_tokens
        self.keep(list(self._leases))

    def came(self, prefix: Prefix) -> None:
        """K/V of `prefix` was added: hold what is new of pinned prefixes. O(prefixes)."""
        if any(_is_new(prefix, each, lease) for each, lease in self._leases.items()):
            self.keep(list(self._leases))

    def dropped(self) -> None:
        """K/V was dropped: let go of what nobody finds any more."""
        if any(lease is not None and lease.is_withheld for lease in self._leases.values()):
            self.keep(list(self._leases))

    def _held_anew(self) -> int:
        """Take a lease for each prefix; returns how many tokens they hold."""
        nodes: set[Node] = set()
        left = self._most
        for prefix in self._leases:
            if not self._cache.match(prefix):
                continue
            lease = self._cache.hold(prefix)
            path = _above(lease.node, nodes)
            num_new = sum(node.num_tokens for node in path)
            if num_new > left:
                lease.release()
                continue
            nodes.update(path)
            left -= num_new
            self._leases[prefix] = lease
        return self._most - left


def _is_new(added: Prefix, pinned: Prefix, lease: Lease | None) -> bool:
    """Whether `added` has more of what is pinned than is held."""
    num_held = 0 if lease is None else lease.num_cached
    return num_held < pinned.num_tokens and added.begins_with(pinned.first(num_held + 1))


def _above(node: Node | None, known: set[Node]) -> list[Node]:
    """`node` and the nodes above it, as far as they are not `known`."""
    path: list[Node] = []
    while node is not None and node not in known:
        path.append(node)
        node = node.parent
    return path


def _release(leases: Iterable[Lease | None]) -> None:
    for lease in leases:
        if lease is not None:
            lease.release()

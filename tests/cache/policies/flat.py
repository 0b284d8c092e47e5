"""A cache of prompts of one token each, in which every policy is what it was for objects."""

from __future__ import annotations

from radixserve.cache.kvcache import KVCache
from radixserve.cache.policies.policy import Policy
from radixserve.prefix import Prefix


class Flat:
    """Serves one prompt at a time, so that nothing is pinned while another is evicted."""

    def __init__(self, size: int, policy: Policy, cache_type: type[KVCache] = KVCache) -> None:
        self.cache = cache_type(size, policy=policy)

    def access(self, key: int) -> bool:
        """Whether `key` is cached; it is afterwards."""
        prompt = Prefix.of("", [key])
        lease = self.cache.receive(prompt)
        assert lease is not None, "nothing else is leased"
        with lease:
            lease.publish(prompt)
            return lease.num_cached == 1

    def cached(self) -> set[int]:
        """The keys in the cache."""
        return {int(key) for root in self.cache.tree.roots.values() for key in root.children}

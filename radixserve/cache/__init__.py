"""The prefix cache: which tokens' K/V exist, in which slots, who holds them and which go first.

    slots.py     free slots as runs: allocate, free, coalesce
    radix.py     the tree: token sequences -> slot runs; match, split, insert, truncate
    eviction.py  pins, the policy and the ordered leaves: which nodes may go, and in which order
    kvcache.py   the facade the scheduler uses: KVCache, Lease, CacheStats
    pool.py      the K and V tensors that slots index (the only module here that knows torch)

Imports run down this list from the bottom: kvcache uses eviction, radix and slots; slots uses none
of them.
"""

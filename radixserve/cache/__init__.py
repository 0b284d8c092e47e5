"""The prefix cache: which tokens' K/V exist, in which slots, who holds them and which go first.

    slots.py     free slots as runs: allocate, free, coalesce
    radix.py     the tree: token sequences -> slot runs; match, split, insert, truncate
    ghosts.py    what is remembered of evicted prefixes
    hindsight.py what more memory would have brought
    policies/    which of the leaves that may go is next: one module for each idea
    eviction.py  pins and uses: which nodes may go, and what the policy is told of them
    budgeted_slots.py  slots within a budget that moves: what goes where too few are free
    kvcache.py   leases on the tree, as the scheduler uses them: KVCache, Lease, CacheStats
    counters.py  the metrics of the device's cache

Imports run down this list from the bottom: kvcache uses budgeted_slots, eviction, radix and slots;
slots uses none of them. The tensors that slots index are in `tensors.kv`; nothing here knows torch.
"""

"""The policies of eviction: which of the leaves that nobody uses goes first.

    policy.py     what a policy is, and a line of leaves in order
    ranked.py     lru, lfu, fifo: one number for each leaf
    segmented.py  slru: what was used twice is kept apart
    s3fifo.py     s3-fifo: a small queue for what is new
    sieve.py      sieve: a hand passes over what was used
    arc.py        arc: two sides whose sizes adapt to what came back
    worth.py      worth, our own: the computing that K/V can be expected to save
    table.py      all of them by name

docs/eviction.md compares them.
"""

"""Single flight: of several sequences with a common prefix that is not cached, one computes it, and
the others wait for it instead of computing it as well.

    A  0 ........ 800 ...... 1200    runs, and has computed 300 tokens
    B  0 ........ 800 ... 900        waits until A has computed 800, then begins with these

Decides from the sequences that run and from the cache, and changes neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from radixserve.cache.kvcache import KVCache
from radixserve.engine.sequence import Sequence

MIN_SHARED: Final = 16  # tokens; for a shorter common prefix a sequence does not wait for another


def awaits_prefix(sequence: Sequence, running: Iterable[Sequence], cache: KVCache) -> bool:
    """Whether one of `running` is computing a prefix that `sequence`, which waits, can reuse
    afterwards. O(running * tokens).
    """
    if not (cache.enabled and sequence.reads_cache):
        return False
    prefilling = [each for each in running if each.num_pending > 1 and _shares(each)]
    shared = max((_shared_pending(sequence, other) for other in prefilling), default=0)
    if shared < MIN_SHARED:
        return False
    return shared > cache.match(sequence.prefix(sequence.num_tokens))


def _shares(sequence: Sequence) -> bool:
    """Whether others will find what a running sequence computes."""
    assert sequence.lease is not None, f"{sequence.request.id} holds no lease"
    return not sequence.lease.is_withheld


def _shared_pending(sequence: Sequence, other: Sequence) -> int:
    """Length of the prefix that both share, if `other` has not computed all of it yet; else 0."""
    shared = sequence.shared_prefix(other)
    return shared if shared > other.num_computed else 0

"""Every policy of eviction by the name that the setting `eviction_policy` gives it."""

from __future__ import annotations

from collections.abc import Callable

from radixserve.cache.policies.arc import AdaptiveReplacement
from radixserve.cache.policies.policy import Policy, Scale
from radixserve.cache.policies.ranked import (
    first_in,
    least_frequently_used,
    least_recently_used,
)
from radixserve.cache.policies.s3fifo import S3FIFO
from radixserve.cache.policies.segmented import SegmentedLRU
from radixserve.cache.policies.sieve import Sieve
from radixserve.cache.policies.worth import Worth

POLICIES: dict[str, Callable[[Scale], Policy]] = {
    "lru": lambda _: least_recently_used(),
    "lfu": lambda _: least_frequently_used(),
    "fifo": lambda _: first_in(),
    "slru": SegmentedLRU,
    "s3-fifo": S3FIFO,
    "sieve": lambda _: Sieve(),
    "arc": AdaptiveReplacement,
    "worth": Worth,
}
"""What makes the policy of one cache."""


def make_policy(name: str, num_slots: int) -> Policy:
    """The policy `name`, for a cache of `num_slots` slots."""
    return POLICIES[name](Scale(num_slots))

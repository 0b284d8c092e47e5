"""One pin of the engine, and what several hold together. Knows leases of the cache, no requests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from radixserve.cache.kvcache import Lease, nodes_of
from radixserve.cache.radix import Node
from radixserve.prefix import Branch, Prefix, unpack
from radixserve.questions import Pin, PinState

_FIRST_TOKENS = 12  # of a prefix, which are listed


@dataclass(slots=True, eq=False)
class HeldPin:
    """One pin. Without a lease it holds nothing. Times are in seconds of the clock of `Pins`."""

    asked: Pin
    prefix: Prefix
    end: float
    told_end: float  # what the front knows
    hits: int = 0
    lease: Lease | None = None
    told_held: int = 0  # tokens that it holds, as the front knows

    @property
    def id(self) -> str:
        return self.asked.id

    @property
    def tenant(self) -> str | None:
        """Whose request asked for it; None: an operator did."""
        return self.asked.tenant

    @property
    def num_held(self) -> int:
        return 0 if self.lease is None else self.lease.num_cached

    def let_go(self) -> None:
        """Hold nothing more."""
        if self.lease is not None:
            self.lease.release()
            self.lease = None

    def is_dropped_with(self, branch: Branch) -> bool:
        """Whether it ends when `branch` is dropped."""
        return branch.covers(self.prefix) or (self.lease is not None and self.lease.is_withheld)

    def lacks_what_is_in(self, prompt: Prefix) -> bool:
        """Whether `prompt` has more of the prefix than is held."""
        return prompt.shares_more(self.prefix, self.num_held)

    def wish(self, now: float) -> Pin:
        """The question that makes it again."""
        return msgspec.structs.replace(
            self.asked,
            seconds_left=self.end - now,
            namespace=self.prefix.namespace,
            packed=self.prefix.tokens,
            num_public=self.prefix.num_public,
            node=None,
        )

    def state(self, now: float) -> PinState:
        """It as it is listed."""
        return PinState(
            id=self.id,
            namespace=self.prefix.namespace,
            tokens=self.num_held,
            wanted=self.asked.num_wanted or self.prefix.num_tokens,
            seconds_left=self.end - now,
            ttl=self.asked.seconds if self.asked.renews else None,
            hits=self.hits,
            first_tokens=unpack(self.prefix.tokens, _FIRST_TOKENS),
            tenant=self.tenant,
        )


def nodes_held(pins: Iterable[HeldPin]) -> set[Node]:
    """The nodes of the tree that `pins` hold. O(pins and nodes)."""
    return nodes_of(pin.lease for pin in pins if pin.lease is not None)


def num_tokens_of(pins: Iterable[HeldPin]) -> int:
    """The tokens that `pins` hold together; what several hold counts once."""
    return sum(node.num_tokens for node in nodes_held(pins))


def num_states_of(pins: Iterable[HeldPin]) -> int:
    """The state slots that `pins` hold together, in a cache that has some: one for each end."""
    leases = (pin.lease for pin in pins if pin.lease is not None)
    return len({place for lease in leases for place in lease.held.tolist()})

"""Which running sequence gives its slots to one of another tenant when the K/V budget is full.

A tenant may fill the whole budget while nobody else wants it. When a sequence of another tenant
finds no slots, though its tenant would stay within its share, the tenant that is furthest above its
own gives some back: its youngest sequence is preempted, whose K/V stays in the cache as long as
there is room. A share is that of the weights of all tenants with running sequences, at most the
quota and at least the floor of the tenant. No tenant below its share gives slots, and no sequence
gives them again before it has computed `MIN_PROGRESS` tokens more than ever. Counts slots, takes
none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from radixserve.cache.kvcache import nodes_of
from radixserve.engine.seats import loses_little
from radixserve.engine.sequence import Sequence

MIN_PROGRESS: Final = 32  # tokens


class SlotShares:
    """Who holds the slots, as of now. Making one costs O(running * tenants), and a walk over the
    nodes that are held.
    """

    def __init__(
        self, running: list[Sequence], num_slots: int, in_slots: Callable[[float], int]
    ) -> None:
        """`running` is oldest first; `in_slots` tells quotas and floors in slots."""
        self._running, self._num_slots, self._in_slots = running, num_slots, in_slots
        self._newest = {each.request.tenant: each.request for each in running}
        self._held = {tenant: self._slots_of(tenant) for tenant in self._newest}

    def _slots_of(self, tenant: str) -> int:
        """Slots under its leases; those of a shared prefix count once."""
        leases = [
            each.lease
            for each in self._running
            if each.request.tenant == tenant and each.lease is not None
        ]
        published = sum(node.num_tokens for node in nodes_of(leases))
        return published + sum(len(lease.slots) - lease.num_published for lease in leases)

    def takers(self, firsts: Iterable[Sequence]) -> set[str]:
        """The tenants to which others may have to give slots, given a waiting sequence of each
        tenant that has some.
        """
        return {each.request.tenant for each in firsts if self.giver(each, 0) is not None}

    def giver(self, wanting: Sequence, num_wanted: int) -> Sequence | None:
        """The running sequence that gives its slots to `wanting`, which wants so many more; None if
        nobody has to.
        """
        ours = wanting.request.tenant
        surplus = self._surplus(wanting)
        if surplus.pop(ours) + num_wanted > 0 or not surplus:
            return None
        most = max(surplus, key=lambda each: surplus[each])
        if surplus[most] <= 0:
            return None
        youngest_first = (each for each in reversed(self._running) if each.request.tenant == most)
        return next((each for each in youngest_first if _may_give(each)), None)

    def _surplus(self, wanting: Sequence) -> dict[str, int]:
        """Slots that each tenant holds beyond its share; negative below it."""
        requests = {**self._newest, wanting.request.tenant: wanting.request}
        per_weight = self._num_slots / sum(each.weight for each in requests.values())
        surplus = {}
        for tenant, request in requests.items():
            share = int(per_weight * request.weight)
            if request.kv_quota:
                share = min(share, self._in_slots(request.kv_quota))
            if request.kv_floor:
                share = max(share, self._in_slots(request.kv_floor))
            surplus[tenant] = self._held.get(tenant, 0) - share
        return surplus


def _may_give(sequence: Sequence) -> bool:
    return loses_little(sequence) and sequence.num_computed >= sequence.num_reached + MIN_PROGRESS

"""Which running sequence makes room for a waiting one when all seats of a step are taken.

A seat is a place among the running sequences. A tenant may hold more than its share while nobody
else wants them, and one body of a request all seats of its tenant. When others come they give the
surplus back: the youngest of them is preempted, which costs little, because its K/V stays in the
cache. Knows no cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from radixserve.engine.sequence import Sequence


class Seats:
    """Who holds the seats, as of now: it is counted once, O(running), and asked often."""

    def __init__(self, running: list[Sequence], num_seats: int) -> None:
        """`running` is oldest first."""
        self._running, self._num_seats = running, num_seats
        self._of_tenant = Counter(each.request.tenant for each in running)
        self._of_body = Counter((each.request.tenant, each.body) for each in running)
        self._weights = {each.request.tenant: each.request.weight for each in running}

    def may_give(self, firsts: Iterable[Sequence]) -> bool:
        """Whether any waiting sequence may get a seat, given one of each tenant that has some.
        False in an overload by requests that all have their share, however many wait; O(tenants
        squared).
        """
        if any(self._tenant_with_surplus(each) is not None for each in firsts):
            return True
        return any(count > 1 for count in self._of_body.values())

    def seat_for(self, waiting: Sequence) -> Sequence | None:
        """The running sequence that gives its seat to `waiting`; None if nobody has too many.
        O(tenants + bodies), and O(running) if there is one.
        """
        tenant = self._tenant_with_surplus(waiting)
        if tenant is not None:
            return self._youngest(tenant)
        body = self._body_with_surplus(waiting)
        return None if body is None else self._youngest(waiting.request.tenant, body)

    def _tenant_with_surplus(self, waiting: Sequence) -> str | None:
        """Another tenant that has most seats beyond its share, if `waiting` is within that of its
        own.
        """
        ours, weights = waiting.request.tenant, dict(self._weights)
        weights[ours] = waiting.request.weight
        per_weight = self._num_seats / sum(weights.values())
        surplus = {
            each: self._of_tenant[each] - max(1.0, per_weight * weight)
            for each, weight in weights.items()
        }
        if surplus.pop(ours) > -1 or not surplus:
            return None
        most = max(surplus, key=lambda each: surplus[each])
        return most if surplus[most] > 0 else None

    def _body_with_surplus(self, waiting: Sequence) -> str | None:
        """A body of the same tenant that has most seats and more than one, if that of `waiting` has
        none.
        """
        tenant = waiting.request.tenant
        if self._of_body[tenant, waiting.body]:
            return None
        (_, body), most = max(
            (each for each in self._of_body.items() if each[0][0] == tenant),
            key=lambda each: each[1],
            default=(("", ""), 0),
        )
        return body if most > 1 else None

    def _youngest(self, tenant: str, body: str | None = None) -> Sequence | None:
        """The youngest that loses little: its K/V stays in the cache, and it may read it again."""
        for each in reversed(self._running):
            is_meant = each.request.tenant == tenant and body in (None, each.body)
            if is_meant and loses_little(each):
                return each
        return None


def loses_little(sequence: Sequence) -> bool:
    """Whether a sequence can be preempted at little cost: it finds its K/V in the cache again."""
    return sequence.request.keeps_cache and sequence.reads_cache and not sequence.num_retry

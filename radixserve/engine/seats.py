"""Which running sequence makes room for a waiting one when all seats of a step are taken.

A seat is a place among the running sequences. A tenant may hold more than its share while nobody
else wants them, and one body of a request all seats of its tenant. When others come they give the
surplus back: the youngest of them is preempted, which costs little, because its K/V stays in the
cache. Knows no cache.
"""

from __future__ import annotations

from collections import Counter

from radixserve.engine.queue import body_of
from radixserve.engine.sequence import Sequence


def seat_for(waiting: Sequence, running: list[Sequence], num_seats: int) -> Sequence | None:
    """The running sequence that gives its seat to `waiting`; None if nobody has too many.
    `running` is oldest first. O(running).
    """
    return _from_other_tenant(waiting, running, num_seats) or _from_other_body(waiting, running)


def _from_other_tenant(
    waiting: Sequence, running: list[Sequence], num_seats: int
) -> Sequence | None:
    """A seat that another tenant has beyond its share, if `waiting` is within that of its own."""
    weights = {each.request.tenant: each.request.weight for each in [*running, waiting]}
    per_weight = num_seats / sum(weights.values())
    seats = Counter(each.request.tenant for each in running)
    ours = waiting.request.tenant
    if seats[ours] + 1 > max(1.0, per_weight * weights[ours]):
        return None
    surplus = {
        each: seats[each] - max(1.0, per_weight * weights[each]) for each in seats if each != ours
    }
    if not surplus or max(surplus.values()) <= 0:
        return None
    most = max(surplus, key=lambda each: surplus[each])
    return _youngest([each for each in running if each.request.tenant == most])


def _from_other_body(waiting: Sequence, running: list[Sequence]) -> Sequence | None:
    """A second seat of a body of the same tenant, if that of `waiting` has none."""
    same = [each for each in running if each.request.tenant == waiting.request.tenant]
    seats = Counter(body_of(each) for each in same)
    if not seats or seats[body_of(waiting)]:
        return None
    body, most = seats.most_common(1)[0]
    return _youngest([each for each in same if body_of(each) == body]) if most > 1 else None


def _youngest(running: list[Sequence]) -> Sequence | None:
    """The youngest that loses little: its K/V stays in the cache, and it may read it again."""
    return next((each for each in reversed(running) if _loses_little(each)), None)


def _loses_little(sequence: Sequence) -> bool:
    return sequence.request.keeps_cache and sequence.reads_cache and not sequence.num_retry

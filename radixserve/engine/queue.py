"""The order in which waiting sequences are admitted, and in which prefills share a step.

Between tenants: fair by weight. Each tenant has a clock that counts the tokens computed for it,
divided by its weight; the tenant whose clock is behind comes first. A tenant that was idle begins
at the clock of the one that is behind most, so that idling saves nothing up.

Within a tenant: the first sequence of every body before the second of any (n = 16); then what has
the longest prefix in the cache; then by arrival. But nobody is overtaken more than `MAX_OVERTAKEN`
times. A step of `priority` counts like ten seconds of arrival, and between tenants like some
computed tokens, so priority delays and never starves.

    arrival   A (cold)   B (warm)   C (cold)   D (warm)        MAX_OVERTAKEN = 2
    admitted  B, D, then A although E (warm) has come meanwhile, then E, C

Knows sequences, no slots and no steps.
"""

from __future__ import annotations

import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Container, Iterator
from typing import Final

from radixserve.declared import Numbers
from radixserve.engine.counters import TENANT_REQUESTS
from radixserve.engine.sequence import Sequence

MAX_OVERTAKEN: Final = 8  # admissions of later arrivals of the same tenant
MAX_PASSED: Final = 4  # steps in which a prefill gets nothing while a shorter one computes
PRIORITY_SECONDS: Final = 10.0
PRIORITY_TOKENS: Final = 500
SHARED_SECONDS: Final = 10.0  # for how long a tenant that has left is expected back


class FairQueue:
    """All waiting sequences, and the clocks of the tenants that have any in the engine."""

    def __init__(
        self,
        num_matched: Callable[[Sequence], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`num_matched` says how many tokens of a sequence the cache holds now."""
        self._num_matched = num_matched
        self._clock = clock
        self._waiting: dict[str, list[Sequence]] = {}  # by tenant, in the order of arrival
        self._clocks: dict[str, float] = {}  # by tenant; tenants that are idle keep theirs
        self._live: dict[str, int] = {}  # sequences in the engine, waiting or running
        self._left: dict[str, float] = {}  # when tenants without any left, the earliest first
        self._seats: Counter[str] = Counter()  # running sequences of each body
        self._serial = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Sequence]:
        for each in list(self._waiting.values()):
            yield from list(each)

    def add(self, sequence: Sequence) -> None:
        """A sequence that has come to the engine; `leave` says that it has ended."""
        tenant = sequence.request.tenant
        if not self._live.get(tenant):
            now = min((self._clocks[each] for each in self._live), default=0.0)
            self._clocks[tenant] = max(self._clocks.get(tenant, 0.0), now)
        self._live[tenant] = self._live.get(tenant, 0) + 1
        self._left.pop(tenant, None)
        self._serial += 1
        arrived = sequence.request.arrived + PRIORITY_SECONDS * sequence.request.priority
        sequence.place = (1, arrived, self._serial)
        sequence.num_matched = self._num_matched(sequence)
        self._insert(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """A sequence that was preempted: it is next of its tenant."""
        sequence.place = (0, *sequence.place[1:])
        self._seats[sequence.body] -= 1
        sequence.num_overtaken = MAX_OVERTAKEN
        self._insert(sequence)

    def _insert(self, sequence: Sequence) -> None:
        line = self._waiting.setdefault(sequence.request.tenant, [])
        insort(line, sequence, key=lambda each: each.place)

    def remove(self, sequence: Sequence) -> None:
        """A sequence that waits no more, because it has ended."""
        tenant = sequence.request.tenant
        self._waiting[tenant].remove(sequence)
        if not self._waiting[tenant]:
            del self._waiting[tenant]

    def admit(self, sequence: Sequence) -> None:
        """A sequence that begins to run; it has overtaken those that came before."""
        for each in self._waiting[sequence.request.tenant]:
            if each is sequence:
                break
            each.num_overtaken += 1
        self.remove(sequence)
        self._seats[sequence.body] += 1

    def leave(self, sequence: Sequence) -> None:
        """A sequence has ended, waiting or running."""
        tenant, body = sequence.request.tenant, sequence.body
        if sequence.lease is not None:
            self._seats[body] -= 1
        if not self._seats[body]:
            del self._seats[body]
        self._live[tenant] -= 1
        if not self._live[tenant]:
            del self._live[tenant]
            self._left[tenant] = self._clock()

    def numbers(self) -> Numbers:
        """Running and waiting sequences by tenant; O(tenants that have any)."""
        found: Numbers = {}
        for tenant, live in self._live.items():
            waiting = len(self._waiting.get(tenant, ()))
            found[TENANT_REQUESTS.key(tenant, "running")] = live - waiting
            found[TENANT_REQUESTS.key(tenant, "waiting")] = waiting
        return found

    @property
    def is_shared(self) -> bool:
        """Whether several tenants use the engine: they have sequences in it, or had some in the
        last `SHARED_SECONDS`.
        """
        since = self._clock() - SHARED_SECONDS
        while self._left and next(iter(self._left.values())) < since:
            del self._left[next(iter(self._left))]
        return len(self._live) + len(self._left) > 1

    def served(self, sequence: Sequence, num_tokens: int) -> None:
        """Tokens were computed for a sequence."""
        request = sequence.request
        self._clocks[request.tenant] += num_tokens / request.weight

    def firsts(self) -> list[Sequence]:
        """A waiting sequence of each tenant that has any."""
        return [line[0] for line in self._waiting.values()]

    def candidates(self, most: int, tenants: Container[str] | None = None) -> list[Sequence]:
        """Up to `most` waiting sequences, of these tenants (None: of all), in the order in which
        they should be admitted. O(most * tenants), and a look at the cache for each.
        """
        asked = [each for each in self._waiting if tenants is None or each in tenants]
        lines = {tenant: self._line(tenant, most) for tenant in asked}
        clocks = {tenant: self._clocks[tenant] for tenant in lines}
        chosen: list[Sequence] = []
        while lines and len(chosen) < most:
            tenant = min(lines, key=lambda each: (_ahead(clocks[each], lines[each][0]), each))
            sequence = lines[tenant].pop(0)
            chosen.append(sequence)
            missing = sequence.num_tokens - sequence.num_matched
            clocks[tenant] += missing / sequence.request.weight
            if not lines[tenant]:
                del lines[tenant]
        return chosen

    def _line(self, tenant: str, most: int) -> list[Sequence]:
        """The first `most` of a tenant in its own order."""
        line = self._waiting[tenant]
        rounds = self._rounds(line)
        protected = [each for each in line if each.num_overtaken >= MAX_OVERTAKEN][:most]
        others = [each for each in line if each.num_overtaken < MAX_OVERTAKEN]
        others = sorted(others, key=rounds.__getitem__)[: most - len(protected)]
        for each in protected + others:
            each.num_matched = self._num_matched(each)
        if len({each.request.priority for each in others}) == 1:
            others.sort(key=lambda each: (rounds[each], -each.num_matched))
        return protected + others

    def _rounds(self, line: list[Sequence]) -> dict[Sequence, int]:
        """How many sequences of the same body run, or are in front of each: the first of every body
        comes before the second of any.
        """
        ahead, rounds = (
            Counter({each: self._seats[each] for each in (each.body for each in line)}),
            {},
        )
        for each in line:
            rounds[each] = ahead[each.body]
            ahead[each.body] += 1
        return rounds

    def is_behind(self, newcomer: Sequence, others: list[Sequence]) -> bool:
        """Whether `newcomer`, which is not in the engine yet, is of another tenant than all of
        `others`, and comes before them.
        """
        tenant = newcomer.request.tenant
        clock = _ahead(self._clocks.get(tenant, 0.0), newcomer)
        return all(
            each.request.tenant != tenant
            and clock <= _ahead(self._clocks[each.request.tenant], each)
            for each in others
        )

    def prefill_order(self, prefilling: list[Sequence]) -> list[Sequence]:
        """Running sequences that prefill, in the order in which they share a step: fair between
        tenants, then what is nearly done first, so that a warm prompt does not wait for cold ones.
        """
        return sorted(
            prefilling,
            key=lambda each: (
                _ahead(self._clocks[each.request.tenant], each),
                each.num_passed < MAX_PASSED,
                each.num_expected - each.num_planned,
            ),
        )


def _ahead(clock: float, sequence: Sequence) -> float:
    return clock + PRIORITY_TOKENS * sequence.request.priority

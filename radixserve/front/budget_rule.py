"""Whether a K/V budget should grow or shrink now, that of the device or that of host memory: the
decision alone, from what was measured.

A budget grows by a quarter when several checks in a row say that more memory would make hits of
prompt tokens that had to be computed, and that the machine has room for it. It shrinks at once when
the machine lacks memory, and then stays for a while, longer each time that a growth had to be
undone. So it does not follow memory that comes and goes. Knows no engine and no clock: time is
counted in checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

STEP_SHARE: Final = 0.25  # of the budget, by which it grows, and shrinks at least
GAIN: Final = (
    0.04  # share of prompt tokens that as much memory again must make hits, to be worth it
)
CHECKS: Final = 6  # in a row that speak for a growth
MIN_TOKENS: Final = 1024  # prompt tokens without which a check says nothing about hits
SETTLE: Final = 2  # checks from one shrink to the next, in which the memory goes back to the system
FIRST_HOLD: Final = 60  # checks without growth after memory was short
LONGEST_HOLD: Final = 720
CALM: Final = 2 * LONGEST_HOLD  # checks without a setback, after which holds are short again

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Reading:
    """What one check has measured. Sizes are in bytes, tokens are totals since the engine began."""

    budget: int
    least: int  # the bounds of the budget
    most: int
    unused: int  # part of the budget that holds no K/V, for which memory may not be taken yet
    promised: int  # the same of the other budgets in this memory
    free: int  # memory that the machine has left
    reserve: int  # that it should have left
    prompt_tokens: int
    ghost_hits: Mapping[float, int]  # tokens that so many times the budget would have made hits

    @property
    def step(self) -> int:
        return max(1, int(STEP_SHARE * self.budget))


@dataclass(frozen=True, slots=True)
class Change:
    """A new budget in bytes, and why."""

    budget: int
    reason: str


class Hold:
    """The time after a setback in which nothing is tried: twice as long each time that a try led to
    the setback, and as at first after a long calm.
    """

    def __init__(self) -> None:
        self._left = 0  # checks to come
        self._length = FIRST_HOLD  # of the next hold
        self._calm = 0  # checks since the last setback
        self._tried = False  # since the last setback

    @property
    def is_on(self) -> bool:
        """Whether nothing should be tried now."""
        return self._left > 0

    def tried(self) -> None:
        """Something was tried."""
        self._tried = True

    def setback(self) -> None:
        """What is tried, or would be, is too much now."""
        if self._tried:
            self._length = min(2 * self._length, LONGEST_HOLD)
        self._tried, self._calm, self._left = False, 0, self._length

    def next_check(self) -> None:
        """One check has passed."""
        self._left = max(0, self._left - 1)
        self._calm += 1
        if self._calm >= CALM:
            self._length = FIRST_HOLD


class BudgetRule:
    """Takes a reading at each check, and remembers what it needs of earlier ones."""

    def __init__(self) -> None:
        self._before: Reading | None = None  # the one from which tokens are counted
        self._budget = 0  # at the last check
        self._in_row = 0  # checks that spoke for a growth
        self._settling = 0  # checks to come without a shrink
        self._hold = Hold()  # without a growth

    @property
    def is_settling(self) -> bool:
        """Whether memory that it gave may still be on its way back to the system."""
        return self._settling > 0

    def decide(self, now: Reading) -> Change | None:
        """The change to make now; None leaves the budget as it is."""
        if now.budget != self._budget:  # by the last decision, or by somebody else
            self._budget, self._in_row, self._before = now.budget, 0, now
        self._hold.next_check()
        self._settling = max(0, self._settling - 1)
        return self._under_pressure(now) if now.free < now.reserve else self._at_ease(now)

    def _under_pressure(self, now: Reading) -> Change | None:
        self._hold.setback()
        self._in_row = 0
        target = max(now.least, now.budget - max(now.step, now.reserve - now.free))
        if self._settling or target >= now.budget:
            return None
        self._settling = SETTLE
        return Change(
            target,
            f"{now.free // _MIB:,} MiB of memory are free, less than the reserve of "
            f"{now.reserve // _MIB:,} MiB",
        )

    def _at_ease(self, now: Reading) -> Change | None:
        gain = self._gain(now)
        if self._hold.is_on or not _has_room(now):
            self._in_row = 0
            return None
        if gain is None:
            return None
        times, share = gain
        self._in_row = self._in_row + 1 if share >= GAIN * (times - 1) else 0
        if self._in_row < CHECKS:
            return None
        self._in_row = 0
        self._hold.tried()
        return Change(
            min(now.most, now.budget + now.step),
            f"{times:g} times the memory would have made hits of {share:.0%} of the prompt tokens",
        )

    def _gain(self, now: Reading) -> tuple[float, float] | None:
        """The multiple of the budget that would have brought most for its memory since the last
        reading that was counted, and the share of prompt tokens that it would have made hits; None
        if there were too few prompt tokens to say.
        """
        before = self._before or now
        computed = now.prompt_tokens - before.prompt_tokens
        hits = {times: now.ghost_hits[times] - before.ghost_hits[times] for times in now.ghost_hits}
        if computed < 0 or min(hits.values()) < 0:  # a new engine counts from zero
            self._before = now
            return None
        if computed < MIN_TOKENS:
            return None
        self._before = now
        # A large multiple counts only if the bounds allow it, because less may bring nothing.
        smallest = min(hits)
        shares = [
            (times, count / computed)
            for times, count in hits.items()
            if times == smallest or times * now.budget <= now.most
        ]
        return max(shares, key=lambda each: each[1] / (each[0] - 1))


def _has_room(now: Reading) -> bool:
    """Whether the budget is in use, may grow, and leaves twice the reserve if it does, so that a
    growth alone never brings the machine below the reserve.
    """
    left = now.free - now.unused - now.promised - now.step
    return now.budget < now.most and now.unused <= now.step and left >= 2 * now.reserve

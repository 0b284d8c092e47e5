"""Whether memory should move from host memory below the device to the device, or back, where both
lie in the same memory (on the CPU): the decision alone, from what was measured.

A token that is found in host memory has to be copied up, which costs some 4 % of computing it. So
the device grows at the cost of host memory while many tokens are copied up and host memory misses
next to nothing of what it evicted. In the other direction it pays only where a token takes less
room in host memory than on the device (`tier_dtype`): more tokens are kept then, and host memory
grows while that would make hits of tokens that are computed. Where both take the same room, what
one loses the other does not gain. What moved to the device and had to come back is not tried again
for a while, longer each time, so that the shares settle. Time is counted in checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from radixserve.front.budget_rule import CHECKS, GAIN, MIN_TOKENS, STEP_SHARE, Hold

COPIED: Final = 0.1  # share of prompt tokens whose copies are worth a move to the device
MISSED: Final = GAIN / 2  # share that half as much host memory again must make hits, to be worth it
NONE_MISSED: Final = MISSED / 10  # share up to which host memory has room to spare


@dataclass(frozen=True, slots=True)
class Bounded:
    """A budget and its bounds, in bytes."""

    budget: int
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Shares:
    """What one check has measured. Tokens are totals since the engine began."""

    device: Bounded
    host: Bounded
    host_holds_more: bool  # whether a token takes less room in host memory than on the device
    prompt_tokens: int
    copied_up: int  # tokens that were found in host memory
    missed: int  # tokens that half as much host memory again would have made hits


@dataclass(frozen=True, slots=True)
class Move:
    """New budgets in bytes, whose sum is that of before, and why."""

    device: int
    host: int
    reason: str


class ShareRule:
    """Takes what was measured at each check, and remembers what it needs of earlier ones."""

    def __init__(self) -> None:
        self._before: Shares | None = None  # those from which tokens are counted
        self._in_row = 0  # checks that spoke for the same direction: above 0 to the device
        self._hold = Hold()  # without a move to the device

    def decide(self, now: Shares) -> Move | None:
        """The move to make now; None leaves the budgets as they are."""
        self._hold.next_check()
        before = self._before
        if before is None or not _goes_on(before, now):
            self._before, self._in_row = now, 0
            return None
        prompt = now.prompt_tokens - before.prompt_tokens
        if prompt < MIN_TOKENS:
            return None
        self._before = now
        copied = (now.copied_up - before.copied_up) / prompt
        missed = (now.missed - before.missed) / prompt
        return self._weigh(now, copied, missed)

    def _weigh(self, now: Shares, copied: float, missed: float) -> Move | None:
        """Count a check that speaks for one direction; the move once enough in a row do."""
        if now.host_holds_more and missed >= MISSED:
            self._in_row = min(self._in_row, 0) - 1
        elif copied >= COPIED and not (now.host_holds_more and missed > NONE_MISSED):
            self._in_row = max(self._in_row, 0) + 1
        else:
            self._in_row = 0
        if self._in_row <= -CHECKS:
            self._in_row = 0
            self._hold.setback()
            why = f"1.5 times the host memory would have made hits of {missed:.0%} of the"
            return _move(
                now, -_step(now.device.budget, now.host, now.device), f"{why} prompt tokens"
            )
        if self._in_row >= CHECKS and not self._hold.is_on:
            self._in_row = 0
            self._hold.tried()
            why = f"{copied:.0%} of the prompt tokens were copied up from host memory"
            smaller = min(now.device.budget, now.host.budget)
            return _move(now, _step(smaller, now.device, now.host), why)
        return None


def _goes_on(before: Shares, now: Shares) -> bool:
    """Whether the same engine has had the same budgets since `before`."""
    same = (now.device, now.host) == (before.device, before.host)
    return same and now.prompt_tokens >= before.prompt_tokens


def _step(of: int, grows: Bounded, shrinks: Bounded) -> int:
    """How much moves: a part of `of`, within the bounds of both."""
    step = max(1, int(STEP_SHARE * of))
    return max(0, min(step, grows.most - grows.budget, shrinks.budget - shrinks.least))


def _move(now: Shares, step: int, reason: str) -> Move | None:
    """`step` bytes go to the device, or from it where they are less than 0."""
    if step == 0:
        return None
    return Move(now.device.budget + step, now.host.budget - step, reason)

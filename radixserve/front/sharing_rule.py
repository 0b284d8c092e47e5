"""Which model should give K/V memory to which other one: the decision alone, from what was
measured.

Models that share a budget should evict as if there were one cache: what was not used for longest
goes, whichever model it belongs to. So memory moves to a model that has just evicted something from
one whose oldest K/V was not used for much longer, or which has memory to spare. It moves in steps
that cannot turn the comparison around: where the age of what a model evicts grows at most with its
budget, the taker's then stays below `RATIO` times the giver's. Hence nothing swings. Knows no
engine and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

RATIO: Final = 1.5  # of the ages of what both models evict next, from which on memory moves
SECONDS: Final = 1.0  # by which they must also differ, because ages are told to the second
TAKER_GROWS: Final = 0.5  # of its budget at most
GIVER_SHRINKS: Final = 0.25  # of its budget at most
SPARE: Final = 0.05  # of a budget: so much of it that is unused can be spared


@dataclass(frozen=True, slots=True)
class Part:
    """One model's part of the budget, and what one check has found of it. Sizes are in bytes."""

    budget: int
    least: int  # below which it does not shrink
    most: int
    unused: int  # of the budget: it holds no K/V
    oldest_seconds: float  # since the last use of the K/V that it evicts next; 0 if there is none
    is_short: bool  # it has evicted since the last check, or requests wait for its memory
    is_filling: bool  # it holds more K/V than at the last check

    @property
    def has_spare(self) -> bool:
        """Whether it can give memory without evicting anything."""
        wants = self.is_short or self.is_filling
        return not wants and self.unused >= max(1, int(SPARE * self.budget))

    @property
    def age(self) -> float:
        """The time since the last use of what it gives next: what is unused was never used."""
        return inf if self.has_spare else self.oldest_seconds


@dataclass(frozen=True, slots=True)
class Transfer:
    """So many bytes go to one model from another, or from what no model has, and why."""

    giver: str | None
    taker: str
    num_bytes: int
    reason: str


def decide(parts: Mapping[str, Part], free: int) -> Transfer | None:
    """The transfer to make now, at most one. `free` bytes of the budget belong to no model."""
    short = [name for name, part in parts.items() if part.is_short and part.budget < part.most]
    if not short:
        return None
    name = min(short, key=lambda each: parts[each].age)
    taker = parts[name]
    wanted = min(max(1, int(TAKER_GROWS * taker.budget)), taker.most - taker.budget)
    if free:
        return Transfer(None, name, min(free, wanted), "it is short of memory, and some is free")
    givers = {each: part for each, part in parts.items() if part.budget > part.least}
    givers.pop(name, None)
    if not givers:
        return None
    other = max(givers, key=lambda each: givers[each].age)
    giver = givers[other]
    if giver.age < RATIO * taker.age + SECONDS:
        return None
    given = min(wanted, giver.budget - giver.least, max(1, int(GIVER_SHRINKS * giver.budget)))
    if giver.has_spare:
        given = min(given, giver.unused)
    return Transfer(other, name, given, _reason(name, taker, other, giver))


def _reason(name: str, taker: Part, other: str, giver: Part) -> str:
    has = "unused memory" if giver.has_spare else f"K/V not used for {giver.age:.0f} s"
    return f"{name} evicts K/V that was used {taker.age:.0f} s ago, {other} has {has}"

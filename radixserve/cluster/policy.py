"""Which server gets a request, decided from what a gateway knows.

`cost` weighs what a request waits for against what it computes:

    cost = seconds until the server is free + alpha * seconds to compute what it has not cached

With alpha = 1 that is the time to the first token. A larger alpha also counts what computing takes
from others, who wait behind it, and that the prompt would then be cached twice, which evicts other
prompts. Rules that send everything to the longest match, or split by a threshold of imbalance,
either leave servers idle or give up affinity for all requests at once.

Several gateways agree without talking to each other: among servers whose costs hardly differ, such
as for a prompt that nobody has, each takes the one that rendezvous hashing of the prompt's first
blocks names (Thaler and Ravishankar, 1998).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Protocol

ALPHA: Final = 3.0
"""The middle of a flat optimum; see docs/scale-out.md."""

SLACK: Final = 0.02
"""Costs that differ by this share of the prompt's whole cost count as equal."""

FIRST_BLOCKS: Final = 2
"""Blocks that name a prompt which nobody has. Many prompts share the first one."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a gateway knows of a prompt when it comes. Servers are numbers from 0 on."""

    keys: Sequence[int]  # of its blocks
    seconds: float  # to compute all of it
    saved: Mapping[int, float]  # seconds, by server that has a part of it


class Policy(Protocol):
    """Chooses among servers, of which there is at least one."""

    def choose(self, asked: Asked, waits: Sequence[float]) -> int:
        """The number of the server that gets a prompt. `waits` are seconds until each is free;
        infinite for one that must not be chosen, unless all are.
        """
        ...


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._turn = itertools.count()

    def choose(self, asked: Asked, waits: Sequence[float]) -> int:
        """See `Policy.choose`."""
        there = _there(waits)
        return there[next(self._turn) % len(there)]


class LeastLoaded:
    """The server that is free first."""

    def choose(self, asked: Asked, waits: Sequence[float]) -> int:
        """See `Policy.choose`."""
        return waits.index(min(waits))


class Rendezvous:
    """The server that the prompt's first blocks name, whatever it has to do."""

    def choose(self, asked: Asked, waits: Sequence[float]) -> int:
        """See `Policy.choose`."""
        return named(asked.keys, _there(waits))


class LeastCost:
    """See the top. O(servers): 8 microseconds for 256."""

    def __init__(self, alpha: float = ALPHA) -> None:
        self._alpha = alpha

    def choose(self, asked: Asked, waits: Sequence[float]) -> int:
        """See `Policy.choose`."""
        whole = self._alpha * asked.seconds
        having = {
            server: waits[server] + whole - self._alpha * saved
            for server, saved in asked.saved.items()
        }
        enough = min([min(waits) + whole, *having.values()]) + SLACK * whole
        near = [server for server, wait in enumerate(waits) if wait + whole <= enough]
        near += [server for server, cost in having.items() if cost <= enough]
        return near[0] if len(near) == 1 else named(asked.keys, near or range(len(waits)))


POLICIES: Final[dict[str, type[Policy]]] = {
    "cost": LeastCost,
    "rendezvous": Rendezvous,
    "least_loaded": LeastLoaded,
    "round_robin": RoundRobin,
}


def _there(waits: Sequence[float]) -> Sequence[int]:
    """The servers that may be chosen."""
    there = [server for server, wait in enumerate(waits) if wait < math.inf]
    return there or range(len(waits))


def named(keys: Sequence[int], servers: Sequence[int]) -> int:
    """The one of `servers` that the first blocks of a prompt name. Where a server comes or goes,
    only the prompts that it gets, or had, are named otherwise.
    """
    first = keys[min(FIRST_BLOCKS, len(keys)) - 1] if keys else 0
    return max(servers, key=lambda server: blake2b(b"%d/%d" % (first, server)).digest())

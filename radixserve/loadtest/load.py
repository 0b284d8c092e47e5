"""Load shapes: when sessions start and how their clients behave. Pure and seeded; knows no HTTP and
no clock.

    shape      a session starts                          needs
    closed     when one of `clients` clients is free
    poisson    at random times, `rate` per second on     rate
               average
    ramp       at random times; the rate grows from      rate, to_rate, ramp_seconds
               `rate` to `to_rate` within
               `ramp_seconds` and stays there
    burst      in groups of `burst`, one group every     burst, period_seconds
               `period_seconds`
    schedule   when the workload says, as in a trace     times in the workload
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from radixserve.loadtest.session import Session, WorkloadError
from radixserve.loadtest.table import Table

Behaviour = Literal["stay", "leave", "slow", "garbage"]
NEEDS = {
    "closed": (),
    "poisson": ("rate",),
    "ramp": ("rate", "to_rate", "ramp_seconds"),
    "burst": ("burst", "period_seconds"),
    "schedule": (),
}


@dataclass(frozen=True, slots=True)
class Load:
    """The load shape and the clients' behaviour; start times are in the sessions."""

    shape: str
    clients: int  # sessions at a time, in a closed loop
    numbers: dict[str, float]  # of the shape
    pause_seconds: float = 0.0  # between the turns of a session
    leave: float = 0.0  # share of requests whose client disconnects at a random moment
    slow: float = 0.0  # share of requests whose client reads slowly
    garbage: float = 0.0  # share of requests that are replaced by garbage

    def behaviour(self, rng: random.Random) -> Behaviour:
        """Draw the behaviour of one request's client."""
        drawn = rng.random()
        for name, share in (("leave", self.leave), ("slow", self.slow), ("garbage", self.garbage)):
            if drawn < share:
                return name  # type: ignore[return-value]  # one of the literals
            drawn -= share
        return "stay"

    def __str__(self) -> str:
        if self.shape == "closed":
            return f"closed loop of {self.clients} clients"
        return ", ".join(
            [self.shape, *(f"{name} {value:g}" for name, value in self.numbers.items())]
        )


def schedule(table: Table, sessions: list[Session], seed: int) -> tuple[Load, list[Session]]:
    """The load that a table describes, and the sessions with their start times.

    Raises:
        WorkloadError: a field is wrong, or one that the shape needs is missing.
    """
    shape = table.take("shape", str, "closed")
    if shape not in NEEDS:
        raise WorkloadError(
            f"{table.where}: shape must be one of {', '.join(NEEDS)}, not {shape!r}"
        )
    numbers = {
        name: table.number(name, 0.0) for name in dict.fromkeys(itertools.chain(*NEEDS.values()))
    }
    for name in NEEDS[shape]:
        if not numbers[name]:
            raise WorkloadError(f"{table.where}: the shape {shape} needs {name}")
    if numbers["burst"] % 1:
        raise WorkloadError(f"{table.where}: burst must be a whole number, not {numbers['burst']}")
    behaviours = {name: table.share(name) for name in ("leave", "slow", "garbage")}
    needed = {name: numbers[name] for name in NEEDS[shape]}
    load = Load(
        shape, table.count("clients", 8), needed, table.number("pause_seconds", 0.0), **behaviours
    )
    table.end()
    if sum(behaviours.values()) > 1:
        raise WorkloadError(
            f"{table.where}: the shares of leave, slow and garbage make more than 1"
        )
    return load, _at(sessions, shape, arrivals(shape, needed, seed), table.where)


def _at(
    sessions: list[Session], shape: str, times: Iterator[float | None], where: str
) -> list[Session]:
    if shape == "schedule":
        if any(session.at is None for session in sessions):
            raise WorkloadError(
                f"{where}: this workload has no times of its own, as the shape schedule needs"
            )
        return sorted(sessions, key=lambda session: session.at or 0.0)
    return [
        dataclasses.replace(session, at=at) for session, at in zip(sessions, times, strict=False)
    ]


def arrivals(shape: str, numbers: dict[str, float], seed: int) -> Iterator[float | None]:
    """Start times in seconds, in order, without end; None means as soon as a client is free."""
    if shape == "closed":
        yield from itertools.repeat(None)
    if shape == "burst":
        yield from (
            i // int(numbers["burst"]) * numbers["period_seconds"] for i in itertools.count()
        )
    rng, passed = random.Random(f"{seed}/arrivals"), 0.0
    while True:
        passed += rng.expovariate(1.0)
        yield passed / numbers["rate"] if shape == "poisson" else _on_ramp(passed, **numbers)


def _on_ramp(expected: float, rate: float, to_rate: float, ramp_seconds: float) -> float:
    """The time by which `expected` arrivals are due: the inverse of the integral of the rate."""
    of_ramp = (rate + to_rate) / 2 * ramp_seconds
    if expected >= of_ramp:
        return ramp_seconds + (expected - of_ramp) / to_rate
    growth = (to_rate - rate) / ramp_seconds
    return 2 * expected / (rate + math.sqrt(rate * rate + 2 * growth * expected))

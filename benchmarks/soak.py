"""A soak: mixed traffic of three tenants, clients that leave, budgets far too small, an operator
who pins, warms and drops, and an engine that is killed every half minute.

    python benchmarks/soak.py [--minutes 10] [--kill-every 30] [--seed 1]
        [-- more options of radixserve serve]

First every request of a finite pool is answered by a quiet server without a cache, one at a time:
the references. Then a server with all three tiers, none of them large enough, gets the same
requests from concurrent clients that draw them at random, feed answers back, leave at random
moments and send nonsense. Each client has the key of one of three tenants; an operator with the key
of an administrator steers the cache at random. After a first interval without kills the traffic
pauses and the baseline is read: resident memory of both processes, open files and threads of the
front. From then on the engine is killed (SIGKILL) again and again; the last one lives for one
interval at least, so that it is as warm as the one of the baseline. At the end the same is read
once more, and the folder of the disk tier is checked.

The time is the least: traffic goes on, for four minutes more at most, until there were two kills
and everything has happened that a soak should show (evictions, copies between tiers, preemptions
...): a slow machine needs longer for it.

Prints one table (metric, value, wanted, ok) and the first example of each failure; exit code 1 if
anything is off.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from soak_clients import Client, Expected, Tally, references
from soak_keys import ADMIN_KEY, TENANTS, key_of_tenant, write_keys
from soak_operator import Operator
from soak_readings import (
    Reading,
    engine_pid,
    front_pid,
    leftovers,
    metrics,
    read,
    rests,
    sizes,
    until,
)
from soak_report import Live, Outcome, missing, rows, table
from soak_requests import conversations

from radixserve.loadtest.server import server
from radixserve.loadtest.session import Session
from radixserve.loadtest.target import Target, base_url, connect, find_model

# 45 KiB per token: 455 tokens on the device, which two or three requests fill, 455 in host memory,
# 700 on the disk.
DISK_BUDGET = 32 << 20
BUDGETS = {"kv-budget": "20MiB", "host-budget": "20MiB", "disk-budget": str(DISK_BUDGET)}
QUIET = ("--no-cache", "--kv-budget", "64MiB", "--log-level", "warning")
LOOK_SECONDS = 0.5  # between two looks at the folder
MORE_SECONDS = 240.0  # at most, until everything has happened that should
LEAST_KILLS = 2
CLOSE_SECONDS = 15.0  # for connections that were cut to be noticed

Check = Callable[[], bool]
Disturbance = Callable[
    [float], Coroutine[None, None, None]
]  # takes the time.monotonic() when the traffic should end


@dataclass(frozen=True, slots=True)
class Plan:
    """How a soak goes on."""

    seconds: float  # of traffic
    kill_every: float  # seconds
    clients: int
    seed: int


@dataclass(frozen=True, slots=True)
class Crew:
    """Everybody who sends requests."""

    http: aiohttp.ClientSession  # with the key of an administrator
    clients: list[Client]
    operator: Operator
    tally: Tally


class Soak:
    """One server under traffic."""

    def __init__(self, plan: Plan, crew: Crew, folder: Path, live: Live) -> None:
        self.front = front_pid()
        self.outcome = Outcome(crew.tally)
        self._plan, self._crew, self._folder, self._live = plan, crew, folder, live
        self._http = crew.http
        self._rng = random.Random(f"{plan.seed}/moments")
        self._going = False
        self._killed_at = 0.0  # time.monotonic() of the last kill

    async def run(self) -> None:
        """Warm up, read, disturb, read again."""
        plan = self._plan
        await self._traffic("warming up", plan.kill_every, self._is_warm)
        self.outcome.baseline = await self._at_rest()
        await self._traffic("soaking", plan.seconds - plan.kill_every, self._is_soaked, self._kill)
        self.outcome.end = await self._at_rest()
        self.outcome.page = await metrics(self._http)

    async def _traffic(
        self, name: str, seconds: float, enough: Check, *others: Disturbance
    ) -> None:
        """All clients, for so long and until there was enough of it, and until their last requests
        have ended.
        """
        self._live.begin(name, seconds)
        end, self._going = time.monotonic() + seconds, True
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look(end - seconds, end, enough))
            for other in others:
                group.create_task(other(end))
            group.create_task(self._crew.operator.run(lambda: self._going))
            for number, client in enumerate(self._crew.clients):
                rng = random.Random(f"{self._plan.seed}/{name}/{number}")
                group.create_task(client.run(rng, lambda: self._going))

    async def _look(self, start: float, end: float, enough: Check) -> None:
        """Watch the folder, tell how it goes, and end it."""
        tally = self._crew.tally
        while time.monotonic() < end or not (enough() or time.monotonic() > end + MORE_SECONDS):
            self.outcome.folder_peak = max(
                self.outcome.folder_peak, sum(sizes(self._folder).values())
            )
            self.outcome.page = await metrics(self._http)
            note = (
                f"{tally.right} right, {tally.left} left, {tally.refused} refused, "
                f"{self.outcome.kills} kills"
            )
            self._live.at(time.monotonic() - start, f"{note}, {tally.failures.total()} failures")
            await asyncio.sleep(LOOK_SECONDS)
        self._going = False

    def _is_warm(self) -> bool:
        return self._crew.tally.right >= 2 * self._plan.clients

    def _is_soaked(self) -> bool:
        """Everything has happened that should, and the last engine has lived long enough."""
        lived = time.monotonic() - self._killed_at
        return (
            self.outcome.kills >= LEAST_KILLS
            and lived >= self._plan.kill_every
            and not missing(self.outcome)
        )

    async def _kill(self, end: float) -> None:
        """Kill engine after engine, one every interval, whatever is under way."""
        due, last = time.monotonic() + self._rng.uniform(0.0, 1.0), end - self._plan.kill_every
        while due <= last or self.outcome.kills < LEAST_KILLS:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            pid = engine_pid(self.front)
            if not self._going or pid is None:
                # without an engine after a whole interval the rest of the soak tells more than a
                # kill
                return
            os.kill(pid, signal.SIGKILL)
            self.outcome.kills, self._killed_at = self.outcome.kills + 1, time.monotonic()
            due += self._plan.kill_every

    async def _at_rest(self) -> Reading:
        """Readings once nothing is pinned, runs, is leased or is connected, as far as that comes
        about.
        """
        await self._crew.operator.put_back()
        if not await until(lambda: rests(self._http)):
            self._crew.tally.fail(
                "the server does not come to rest", await self._crew.operator.what_is_held()
            )
        before = self.outcome.baseline

        async def is_back() -> bool:
            now = read(self.front, self._folder)
            return before is None or now.front_files <= before.front_files

        await asyncio.sleep(1.0)
        await until(is_back, CLOSE_SECONDS)
        return read(self.front, self._folder)


async def answered_quietly(url: str, pool: list[Session], live: Live) -> Expected:
    """See `references`; the server does nothing else."""
    live.begin("references", len(pool))
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        live.at(done)

    target = Target(base_url(url))
    async with connect(target) as http:
        return await references(http, pool, await find_model(http, target), one_more)


async def soaked(url: str, plan: Plan, expected: Expected, folder: Path, live: Live) -> Soak:
    """A soak that has ended, its server still running."""
    async with AsyncExitStack() as stack:
        soak = Soak(plan, await crew_of(url, plan, expected, stack), folder, live)
        await soak.run()
        return soak


async def crew_of(url: str, plan: Plan, expected: Expected, stack: AsyncExitStack) -> Crew:
    """The operator, and the clients, whose tenants take turns."""
    tally = Tally()

    async def session(key: str) -> aiohttp.ClientSession:
        return await stack.enter_async_context(connect(Target(base_url(url), api_key=key)))

    http = await session(ADMIN_KEY)
    model = await find_model(http, Target(base_url(url)))
    tenants = [await session(key_of_tenant(name)) for name in TENANTS]
    clients = [
        Client(tenants[number % len(tenants)], expected, model, tally)
        for number in range(plan.clients)
    ]
    bodies = [json.loads(key)[1] for key in expected.answers]
    operator = Operator(http, bodies, tally, random.Random(f"{plan.seed}/operator"))
    return Crew(http, clients, operator, tally)


def small(folder: Path, keys: Path) -> list[str]:
    """Options of a server whose three tiers are all too small."""
    paths = {"disk-path": str(folder), "api-key-file": str(keys), "log-level": "warning"}
    return [part for name, value in (BUDGETS | paths).items() for part in (f"--{name}", value)]


def measure(plan: Plan, pool: list[Session], options: list[str]) -> Outcome:
    """References, the soak itself, and what it left behind."""
    with tempfile.TemporaryDirectory() as scratch, Live().shown() as live:
        folder, log, keys = Path(scratch, "kv"), Path(scratch, "log"), Path(scratch, "keys.toml")
        write_keys(keys)
        with server([*QUIET, *options]) as url:
            expected = asyncio.run(answered_quietly(url, pool, live))
        with (
            log.open("wb") as file,
            server([*small(folder, keys), *options], log=file) as url,
        ):
            soak = asyncio.run(soaked(url, plan, expected, folder, live))
        soak.outcome.left = leftovers(folder, log, soak.front)
        return soak.outcome


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of traffic [%(default)s]")
    parser.add_argument(
        "--kill-every", type=float, default=30.0, metavar="SECONDS", help="[%(default)s]"
    )
    parser.add_argument("--clients", type=int, default=8, help="[%(default)s]")
    parser.add_argument("--conversations", type=int, default=32, help="in the pool [%(default)s]")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the pool and of all moments [%(default)s]"
    )
    parser.add_argument("options", nargs="*", help="of radixserve serve")
    chosen = parser.parse_args()
    plan = Plan(chosen.minutes * 60, chosen.kill_every, chosen.clients, chosen.seed)
    if plan.seconds < 3 * plan.kill_every:
        parser.error(
            "--minutes must hold three times --kill-every: to warm up, for kills, and for "
            "the last engine"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of what ends the server
    outcome = measure(plan, conversations(chosen.conversations, plan.seed), chosen.options)
    found = rows(outcome, DISK_BUDGET)
    print(table(found))
    for kind, example in outcome.tally.examples.items():
        print(f"\n{outcome.tally.failures[kind]} x {kind}; the first: {example}")
    for entry in (outcome.left.log_errors if outcome.left else [])[:5]:
        print(f"\nlog: {entry}")
    return 0 if all(row.ok for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())

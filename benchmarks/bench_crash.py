"""Kill the engine of a server again and again under eight streams: does a client notice, and for
how long?

    python benchmarks/bench_crash.py [--kills 50] [-- more options of radixserve serve]

Rounds of the same eight streams, chat and completions, greedy and sampled. The first round is left
alone. In the others the engine is killed (SIGKILL) at a random moment once all streams have gone on
after the kill before, until there were so many kills. Prints one table: how many streams were
complete with the text of the first round; then, median and longest over the kills, the time from a
kill until the server is ready again, the longest pause that any client saw around that kill, and by
how much that is longer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from itertools import pairwise

import aiohttp
from soak_readings import is_spare

from radixserve.loadtest.client import Answer, Refused, ask
from radixserve.loadtest.server import server
from radixserve.loadtest.session import Json

NUM_TOKENS = 200
MOST_DELAY = 1.0  # seconds between the moment when all streams have gone on and the next kill
WAIT_SECONDS = 300.0
TOPICS = ("the moon", "old ships", "bread", "a lost key")


@dataclass
class Measured:
    """What came of the kills."""

    num_streams: int = 0
    num_identical: int = 0
    start_seconds: list[float] = field(default_factory=list)  # from each kill to ready
    gap_seconds: list[float] = field(
        default_factory=list
    )  # the longest pause of a stream around each kill


def bodies(model: str) -> list[tuple[str, Json]]:
    """Four chats and four completions; every second is sampled."""
    asked: list[tuple[str, Json]] = []
    for i, topic in enumerate(TOPICS):
        draw = {"temperature": 0.9, "seed": i} if i % 2 else {"temperature": 0}
        common = {
            "model": model,
            "max_tokens": NUM_TOKENS,
            "ignore_eos": True,
            "stream": True,
            **draw,
        }
        asked.append(
            (
                "/v1/chat/completions",
                common | {"messages": [{"role": "user", "content": f"Explain {topic}."}]},
            )
        )
        asked.append(
            ("/v1/completions", common | {"prompt": f"This is a long story about {topic}: once"})
        )
    return asked


def engine_pid() -> int:
    """The process that a child of this one started as its engine."""
    listed = subprocess.run(
        ["ps", "-wweo", "pid=,ppid=,comm=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 3) for line in listed.splitlines()]
    parents = {int(row[0]): int(row[1]) for row in rows}
    engines = [
        int(pid)
        for pid, _, name, *args in rows
        if args and "radixserve.engine.process" in args[0] and not is_spare(name, args[0])
    ]
    (pid,) = [each for each in engines if parents.get(parents[each]) == os.getpid()]
    return pid


async def until_ready(session: aiohttp.ClientSession) -> None:
    """Until the server has noticed that its engine is gone, and has another."""
    for wanted in (503, 200):
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                async with session.get("/health/ready") as response:
                    if response.status == wanted:
                        break
                await asyncio.sleep(0.005)


class Round:
    """All streams once."""

    def __init__(self, session: aiohttp.ClientSession, model: str) -> None:
        self.session = session
        self.answers = [Answer() for _ in bodies(model)]
        self.tasks = [
            asyncio.create_task(ask(session, path, body, answer))
            for (path, body), answer in zip(bodies(model), self.answers, strict=True)
        ]
        self.deaths: list[
            tuple[float, float]
        ] = []  # perf_counter() of each kill, and when the next engine was ready

    @property
    def is_live(self) -> bool:
        return not all(task.done() for task in self.tasks)

    async def all_went_on(self) -> None:
        """Until each stream has ended or got something since the last kill, so that all are in the
        engine again.
        """
        async with asyncio.timeout(WAIT_SECONDS):
            while not all(map(self._went_on, self.tasks, self.answers)):  # noqa: ASYNC110 - the answers tell nobody
                await asyncio.sleep(0.005)

    def _went_on(self, task: asyncio.Task[None], answer: Answer) -> bool:
        since = self.deaths[-1][1] if self.deaths else 0.0
        pieces = answer.arrivals.get(0)
        return task.done() or bool(pieces and pieces[-1] > since)

    async def kill(self) -> None:
        """Kill the engine and wait until there is another."""
        pid = engine_pid()
        killed = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        await until_ready(self.session)
        self.deaths.append((killed, time.perf_counter()))

    async def texts(self) -> list[str | None]:
        """What each stream said; None where it broke."""
        outcomes = await asyncio.gather(*self.tasks, return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None and not isinstance(
                outcome, Refused | aiohttp.ClientError | TimeoutError
            ):
                raise outcome
        return [
            answer.texts.get(0) if end is None else None
            for answer, end in zip(self.answers, outcomes, strict=True)
        ]

    def gaps(self) -> list[float]:
        """For each death the longest pause of any stream that had to do with it."""
        return [
            max(_gap(answer.arrivals.get(0, []), *death) for answer in self.answers)
            for death in self.deaths
        ]


def _gap(arrivals: list[float], killed: float, ready: float) -> float:
    """The longest pause between two arrivals that overlaps the time without an engine."""
    overlapping = [
        then - before for before, then in pairwise(arrivals) if before < ready and then > killed
    ]
    return max(overlapping, default=0.0)


async def disturbed(this: Round, most: int, rng: random.Random) -> Round:
    """Kill the engine while any stream lives, so often at most."""
    while len(this.deaths) < most:
        await this.all_went_on()
        await asyncio.sleep(rng.uniform(0.0, MOST_DELAY))
        if not this.is_live:
            break
        await this.kill()
    return this


async def measure(url: str, kills: int, rng: random.Random) -> Measured:
    """An undisturbed round, then rounds until there were so many kills."""
    measured = Measured()
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=None)) as session:
        async with session.get("/v1/models") as response:
            model = (await response.json())["data"][0]["id"]
        undisturbed = await Round(session, model).texts()
        while kills > len(measured.start_seconds):
            this = await disturbed(Round(session, model), kills - len(measured.start_seconds), rng)
            texts = await this.texts()
            measured.start_seconds += [ready - killed for killed, ready in this.deaths]
            measured.num_streams += len(texts)
            measured.num_identical += sum(map(str.__eq__, map(str, texts), map(str, undisturbed)))
            measured.gap_seconds += this.gaps()
    return measured


def table(measured: Measured) -> str:
    """Markdown; medians and the longest."""
    beyond = [
        gap - start for gap, start in zip(measured.gap_seconds, measured.start_seconds, strict=True)
    ]
    columns = [measured.start_seconds, measured.gap_seconds, beyond]
    cells = " | ".join(f"{statistics.median(each):.2f} / {max(each):.2f}" for each in columns)
    share = (
        f"{measured.num_identical} of {measured.num_streams} "
        f"({measured.num_identical / measured.num_streams:.1%})"
    )
    head = (
        "| kills | streams complete with identical text | kill to ready, s | longest pause, s | "
        "beyond it, s |"
    )
    return f"{head}\n|---|---|---|---|---|\n| {len(beyond)} | {share} | {cells} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("options", nargs="*", help="of radixserve serve")
    chosen = parser.parse_args()
    with server(chosen.options) as url:
        print(table(asyncio.run(measure(url, chosen.kills, random.Random(chosen.seed)))))


if __name__ == "__main__":
    main()

"""Whether streams go on at full speed while other clients post the worst grammars.

    python benchmarks/bench_hostile.py [--streams 8] [--turns 4] [--seconds 20] [-- SERVE FLAGS]

Starts a server with the embedded model. Clients stream answers without end. Turns with nobody else
and turns in which two more clients post grammars that have to be refused, one after the other,
follow each other, because other work on the machine comes and goes. Prints the tokens per second of
all streams together in both kinds of turns, the ratio of neighbours (median and quartiles), the
longest time between two tokens of a stream, and how long each kind of grammar took to be refused.
Ends with status 1 if one was not refused with 400.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.e2e.server import running
from tests.grammar.hostile import HOSTILE, hostile_body

PATH = "/v1/completions"
DEADLINE = 15  # seconds, longer than the default of `render_seconds`
POSTERS = 2  # as many as there are tokenizer processes
TEXT = "The quick brown fox jumps over the lazy dog. " * 4
STREAM = {"prompt": TEXT, "max_tokens": 256, "stream": True, "temperature": 0, "ignore_eos": True}
HEAD = "| {} streams | tokens/s | longest pause, ms |\n|---|---|---|"


class Watch:
    """The times at which tokens arrived, and how posted grammars were answered."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.longest = 0.0  # seconds between two tokens of a stream
        self.refusals: defaultdict[str, list[float]] = defaultdict(list)
        self.wrong: list[str] = []
        self._numbers = itertools.count(1)

    async def stream(self, session: aiohttp.ClientSession) -> None:
        """Stream one answer after the other, until cancelled."""
        while True:
            async with session.post(PATH, json=STREAM) as answer:
                answer.raise_for_status()
                last = 0.0
                async for line in answer.content:
                    if not line.startswith(b"data: {"):
                        continue
                    now = time.perf_counter()
                    self.num_tokens += 1
                    self.longest = max(self.longest, now - last if last else 0.0)
                    last = now

    async def post(self, session: aiohttp.ClientSession, first: int) -> None:
        """Post one grammar after the other, until cancelled. No two have the same text."""
        for name in itertools.islice(itertools.cycle(HOSTILE), first, None):
            begun = time.perf_counter()
            body = hostile_body(name, next(self._numbers))
            async with session.post(PATH, data=body) as answer:
                text = await answer.text()
            self.refusals[name].append(time.perf_counter() - begun)
            if answer.status != 400:
                self.wrong.append(f"{name}: {answer.status} {text[:200]}")

    async def turn(self, seconds: float) -> tuple[float, float]:
        """Tokens per second and the longest pause, from now on."""
        begun, before, self.longest = time.perf_counter(), self.num_tokens, 0.0
        await asyncio.sleep(seconds)
        rate = (self.num_tokens - before) / (time.perf_counter() - begun)
        return rate, self.longest


@asynccontextmanager
async def together(*works: asyncio.Task[None]) -> AsyncIterator[None]:
    """Runs `works` until the block ends."""
    try:
        yield
    finally:
        for work in works:
            work.cancel()
        for work in works:
            with suppress(asyncio.CancelledError):
                await work


async def measure(url: str, args: argparse.Namespace) -> int:
    """Run all turns and print the tables; the exit status."""
    watch, alone, beside = Watch(), list[tuple[float, float]](), list[tuple[float, float]]()
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        streams = [asyncio.create_task(watch.stream(session)) for _ in range(args.streams)]
        async with together(*streams):
            await watch.turn(args.seconds / 2)
            for _ in range(args.turns):
                alone.append(await watch.turn(args.seconds))
                posters = [asyncio.create_task(watch.post(session, i * 4)) for i in range(POSTERS)]
                async with together(*posters):
                    beside.append(await watch.turn(args.seconds))
                await asyncio.sleep(DEADLINE)  # what was posted last may still be checked
                print(f"{alone[-1][0]:.1f} {beside[-1][0]:.1f} tokens/s", file=sys.stderr)
    print(HEAD.format(args.streams))
    for name, turns in (("alone", alone), ("beside hostile grammars", beside)):
        rates, pauses = np.array(turns).T
        print(f"| {name} | {np.median(rates):.1f} | {max(pauses) * 1e3:.0f} |")
    ratios = [after[0] / before[0] for before, after in zip(alone, beside, strict=True)]
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    print(f"| ratio | {middle:.3f} ({low:.3f} to {high:.3f}) | |\n")
    for name, seconds in watch.refusals.items():
        print(f"{name}: refused {len(seconds)} times, after {max(seconds):.1f} s at most")
    print("\n".join(watch.wrong))
    return bool(watch.wrong)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("flags", nargs="*", help="of radixserve serve")
    args = parser.parse_args()
    flags = ["--kv-budget", "512MiB", "--log-level", "error", *args.flags]
    with running(*flags) as server:
        return asyncio.run(measure(server.url, args))


if __name__ == "__main__":
    sys.exit(main())

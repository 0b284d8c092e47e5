"""What tenants cost and what protects them, on a real server with the embedded model.

    python benchmarks/bench_tenants.py flood [--seconds 40]
    python benchmarks/bench_tenants.py stall [-- more options of radixserve serve]
    python benchmarks/bench_tenants.py keys

flood: cached prompts of one tenant, long new prompts of another over 12 connections, and both: hit
share and time to the first token of the one, prompt tokens per second of the other. stall: 8
streams, and a prompt of 7,000 tokens beside them: time between tokens. keys: requests per second of
a fake model with one key and with 1,000. An overload has a file of its own, `bench_overload.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from radixserve.loadtest.server import server

SYSTEM_TOKENS = 600
FLOOD_ROUNDS = 3
KEYS = "[tenants.calm]\nkeys = ['calm']\n[tenants.flood]\nkeys = ['flood']\n"


@dataclass
class Asked:
    """One request and what came of it."""

    status: int = 0
    seconds: float = 0.0  # to the end, or to the refusal
    first: float = 0.0  # to the first token
    cached: int = 0
    prompt: int = 0
    gaps: list[float] = field(default_factory=list)  # between events


async def ask(
    session: aiohttp.ClientSession, prompt: list[int], tokens: int, key: str = "calm"
) -> Asked:
    """Stream a completion of `prompt`."""
    began = time.perf_counter()
    asked = Asked()
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
    last = 0.0
    async with session.post("/v1/completions", json=body, headers={"x-api-key": key}) as response:
        asked.status = response.status
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            if b'"choices":[]' in line.replace(b" ", b""):
                usage = (await asyncio.to_thread(_json, line[6:]))["usage"]
                asked.prompt = usage["prompt_tokens"]
                asked.cached = usage["prompt_tokens_details"]["cached_tokens"]
                continue
            asked.first = asked.first or now - began
            if last:
                asked.gaps.append(now - last)
            last = now
    asked.seconds = time.perf_counter() - began
    return asked


def _json(raw: bytes) -> Any:
    import msgspec

    return msgspec.json.decode(raw)


def fresh(length: int) -> list[int]:
    return random.choices(range(1000, 9000), k=length)


def percentile(values: list[float], share: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0


async def flood(session: aiohttp.ClientSession, seconds: float) -> None:
    """Cached prompts alone, new prompts alone, and both. In turns, because the speed of a shared
    machine changes.
    """
    prefixes = [fresh(SYSTEM_TOKENS) for _ in range(4)]
    for each in prefixes:
        await ask(session, each, 1)
    phases = [Phase("alone", 1, 0), Phase("flood alone", 0, 12), Phase("both", 1, 12)]
    for phase in phases * FLOOD_ROUNDS:
        await phase.run(session, prefixes, seconds / len(phases) / FLOOD_ROUNDS)
    for phase in phases:
        print(phase.result())


@dataclass
class Phase:
    """Some connections of each tenant, several times."""

    name: str
    num_calm: int
    num_floods: int
    calm: list[Asked] = field(default_factory=list)
    computed: int = 0  # prompt tokens of the flood
    seconds: float = 0.0

    async def run(
        self, session: aiohttp.ClientSession, prefixes: list[list[int]], seconds: float
    ) -> None:
        """Requests begin for so many seconds."""
        began = time.perf_counter()
        until = began + seconds
        floods = [asyncio.create_task(_flooding(session, until)) for _ in range(self.num_floods)]
        calms = [asyncio.create_task(_calm(session, prefixes, until)) for _ in range(self.num_calm)]
        self.calm += [each for task in calms for each in await task if each.status == 200]
        self.computed += sum(await asyncio.gather(*floods))
        self.seconds += time.perf_counter() - began

    def result(self) -> str:
        """One line."""
        firsts = [each.first * 1e3 for each in self.calm]
        share = sum(e.cached for e in self.calm) / max(1, sum(e.prompt for e in self.calm))
        return (
            f"{self.name}: {len(firsts)} cached prompts, hit share {share:.0%}, to the first token "
            f"p50 {percentile(firsts, 0.5):.0f} ms, p90 {percentile(firsts, 0.9):.0f} ms; "
            f"{self.computed / self.seconds:.0f} new prompt tokens/s"
        )


async def _calm(
    session: aiohttp.ClientSession, prefixes: list[list[int]], until: float
) -> list[Asked]:
    asked = []
    while time.perf_counter() < until:
        asked.append(await ask(session, random.choice(prefixes) + fresh(16), 8))
        await asyncio.sleep(random.uniform(0.3, 0.7))
    return asked


async def _flooding(session: aiohttp.ClientSession, until: float) -> int:
    """The prompt tokens of requests that began until then."""
    tokens = 0
    while time.perf_counter() < until:
        tokens += (await ask(session, fresh(1000), 1, "flood")).prompt
    return tokens


async def gaps(session: aiohttp.ClientSession) -> None:
    """Time between tokens of 8 streams, without and with a long prompt beside them."""
    marks: list[tuple[float, float]] = []

    async def stream() -> None:
        body = {"prompt": fresh(32), "max_tokens": 2000, "ignore_eos": True, "stream": True}
        last = 0.0
        async with session.post("/v1/completions", json=body) as response:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    now = time.perf_counter()
                    if last:
                        marks.append((now, now - last))
                    last = now

    streams = [asyncio.create_task(stream()) for _ in range(8)]
    await asyncio.sleep(10)
    began = time.perf_counter()
    before = [gap for at, gap in marks if at > began - 7]
    long = asyncio.create_task(ask(session, fresh(7000), 1))
    await asyncio.wait([long], timeout=60)
    beside = [gap for at, gap in marks if at > began]
    taken = f"{long.result().first:.1f} s" if long.done() else "more than 60 s"
    for each in (*streams, long):
        each.cancel()
    await asyncio.gather(*streams, long, return_exceptions=True)
    print(
        f"between tokens p99: {percentile(before, 0.99) * 1e3:.0f} ms before, "
        f"{percentile(beside, 0.99) * 1e3:.0f} ms beside a prompt of 7,000 tokens (p50 "
        f"{percentile(before, 0.5) * 1e3:.0f} and {percentile(beside, 0.5) * 1e3:.0f} ms), "
        f"whose first token took {taken}"
    )


async def rate(session: aiohttp.ClientSession) -> None:
    counts = []
    for _ in range(3):
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < 3:
            await asyncio.gather(*(ask(session, [1, 2, 3], 1) for _ in range(16)))
            done += 16
        counts.append(done / (time.perf_counter() - began))
    print(f"{statistics.median(counts):.0f} requests per second")


Run = Callable[[aiohttp.ClientSession], Awaitable[None]]


def measure(run: Run, options: list[str]) -> None:
    """`run` against a server with these options."""

    async def connected(url: str) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
            await run(session)

    with tempfile.TemporaryFile() as log, server(options, log=log) as url:
        asyncio.run(connected(url))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("flood", "stall", "keys"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("options", nargs="*", help="of radixserve serve, after --")
    given = parser.parse_args()
    random.seed(7)
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.toml"
        keys.write_text(KEYS)
        with_keys = ["--api-key-file", str(keys)]
        if given.what == "flood":
            measure(lambda session: flood(session, given.seconds), with_keys + given.options)
        elif given.what == "stall":
            measure(gaps, given.options)
        else:
            fake = ["--fake-model", *given.options]
            measure(rate, [*fake, "--api-key", "calm"])
            names = [f"[tenants.t{i}]\nkeys = ['key-{i}']\n" for i in range(1000)]
            keys.write_text(KEYS + "".join(names))
            measure(rate, [*fake, *with_keys])


if __name__ == "__main__":
    main()

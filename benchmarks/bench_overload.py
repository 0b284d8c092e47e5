"""Requests at several times the capacity of a server: what share of the capacity is served, how
fast the others are refused, how long the queue lasts, and who takes the processors meanwhile.

    python benchmarks/bench_overload.py [--times 10] [--seconds 60] [-- options of radixserve serve]

The capacity is measured before and after, by 16 clients that come again at once. Arrivals of the
overload are random (an open loop). Load generator, front and engine share the processors, so the
goal of 90 % cannot be told from their own needs. Therefore a second figure is measured: the clients
of the capacity, while the same arrivals go to a process that parses nothing and answers 503. That
is what arrivals leave to any server on these cores.

The server is measured once it is at rest: it makes its memory's pages and a spare engine behind the
start.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from yarl import URL

from radixserve.loadtest.server import server

PROMPT_TOKENS, ANSWER_TOKENS = 120, 8
CLIENTS = 16  # as many as the server has places
REST_SHARE = 0.05  # of one processor, in the second before measuring
TICKS = os.sysconf("SC_CLK_TCK")
REFUSER = """
import asyncio
ANSWER = b"HTTP/1.1 503 No\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n"
async def refuse(reader, writer):
    await reader.read(65536)
    writer.write(ANSWER)
    writer.close()
async def main():
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@dataclass
class Asked:
    """One request and what came of it. Times are seconds since `at`."""

    at: float  # time.perf_counter() seconds
    status: int = 0
    first: float = 0.0  # to the first token
    seconds: float = 0.0  # to the end


class Client(asyncio.Protocol):
    """Sends one request over a connection of its own and notes when which bytes come. It parses no
    more than it must, because it shares the processors with the server.
    """

    def __init__(self) -> None:
        prompt = random.choices(range(1000, 9000), k=PROMPT_TOKENS)
        body = {"prompt": prompt, "max_tokens": ANSWER_TOKENS, "ignore_eos": True, "stream": True}
        self._body = msgspec.json.encode(body | {"temperature": 0})
        self.asked = Asked(time.perf_counter())
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.WriteTransport)
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(self._body)}\r\n\r\n"
        transport.write(head.encode() + self._body)

    def data_received(self, data: bytes) -> None:
        """Note the status and the first token."""
        asked = self.asked
        if not asked.status:
            asked.status = int(data.split(maxsplit=2)[1])
        if not asked.first and b"data: {" in data:
            asked.first = time.perf_counter() - asked.at

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self.asked.seconds = time.perf_counter() - self.asked.at
        if not self.ended.done():
            self.ended.set_result(self.asked)


async def ask(port: int) -> Asked:
    """One request, until its end."""
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    asked: Asked = await client.ended
    return asked


async def capacity(port: int, seconds: float) -> float:
    """Requests per second of as many clients as the server has places."""

    async def client(until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            done += (await ask(port)).status == 200
        return done

    began = time.perf_counter()
    done = await asyncio.gather(*(client(began + seconds) for _ in range(CLIENTS)))
    return sum(done) / (time.perf_counter() - began)


async def arrivals(port: int, rate: float, seconds: float) -> list[asyncio.Task[Asked]]:
    """Requests at random times, `rate` a second."""
    tasks, began = [], time.perf_counter()
    while time.perf_counter() - began < seconds:
        tasks.append(asyncio.create_task(ask(port)))
        await asyncio.sleep(random.expovariate(rate))
    return tasks


async def recovery(port: int, enough: float) -> float:
    """Seconds until a request is sent that gets its first token within `enough` seconds."""
    began = time.perf_counter()
    while True:
        asked = await ask(port)
        if asked.status == 200 and asked.first <= enough:
            return asked.at - began
        await asyncio.sleep(0.1)


def processor_seconds() -> dict[str, float]:
    """What the load generator, and each kind of process of the server, has used so far."""
    used = {"load generator": sum(os.times()[:2])}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[2]) == os.getpgrp() and b"-m" in words:
            kind = words[words.index(b"-m") + 1].decode()
            used[kind] = used.get(kind, 0.0) + (int(fields[11]) + int(fields[12])) / TICKS
    return used


async def rest() -> None:
    """Wait until the server has done what it does behind its start."""
    before = processor_seconds()
    while True:
        await asyncio.sleep(1.0)
        now = processor_seconds()
        if sum(now.values()) - sum(before.values()) < REST_SHARE:
            return
        before = now


@contextmanager
def refuser() -> Iterator[int]:
    """A process that refuses everything; yields its port."""
    process = subprocess.Popen([sys.executable, "-c", REFUSER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


def percentile(values: list[float], share: float) -> float:
    """The value below which so large a share of all is; 0 of none."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0


async def measure(url: str, times: float, seconds: float) -> None:
    """All of it, and the report."""
    port = URL(url).port
    assert port is not None
    await rest()
    alone = percentile([(await ask(port)).first for _ in range(9)], 0.5)
    before = await capacity(port, 12)
    used, began = processor_seconds(), time.perf_counter()
    tasks = await arrivals(port, times * before, seconds)
    ended_at = time.perf_counter()
    shares = {
        kind: (end - used.get(kind, 0.0)) / (ended_at - began)
        for kind, end in processor_seconds().items()
    }
    recovered = await recovery(port, 1.5 * alone)
    asked = await asyncio.gather(*tasks)
    after = await capacity(port, 12)
    with refuser() as nobody:
        others = asyncio.create_task(arrivals(nobody, times * before, 13))
        beside = await capacity(port, 12)
        await asyncio.gather(*await others)
    usual = (before + after) / 2
    in_time = [each for each in asked if each.status == 200 and each.at + each.seconds <= ended_at]
    refused = [each.seconds for each in asked if each.status == 503]
    first = percentile([each.first for each in asked if each.status == 200], 0.9)
    print(f"capacity: {before:.1f} requests/s before, {after:.1f} after")
    print(f"beside arrivals at {times:g} times that, refused elsewhere: {beside / usual:.0%} of it")
    print(f"served at {times:g} times the capacity: {len(in_time) / seconds / usual:.0%} of it")
    print(
        f"refused: {len(refused)}, p50 {percentile(refused, 0.5) * 1e3:.0f} ms, p99 "
        f"{percentile(refused, 0.99) * 1e3:.0f} ms"
    )
    print(f"first token: p90 {first:.1f} s; {alone * 1e3:.0f} ms on the idle server")
    print(f"at most 1.5 times that again {recovered:.1f} s after the end")
    print("processors: " + ", ".join(f"{kind} {share:.2f}" for kind, share in shares.items()))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("options", nargs="*", help="of radixserve serve, after --")
    given = parser.parse_args()
    random.seed(7)
    with tempfile.TemporaryFile() as log, server(given.options, log=log) as url:
        asyncio.run(measure(url, given.times, given.seconds))


if __name__ == "__main__":
    main()

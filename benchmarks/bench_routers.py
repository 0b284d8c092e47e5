"""What a router of another project expects to be cached, beside what is: Dynamo's selection service
reads our KV events.

    pip install ai-dynamo-runtime
    python benchmarks/bench_routers.py [--requests 300] [-- options of radixserve serve]

Each prompt goes on from an earlier one in its middle or at its end, or is new; the budget is so
small that branches are evicted. Before each request the service tells how many blocks of it the
server has. `cached_tokens` of the answer, in whole blocks, is what it had.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import tempfile
from importlib import import_module
from typing import Any

import aiohttp

from radixserve.loadtest.server import server

BLOCK = 16
SETTLE_SECONDS = 0.05  # until events have arrived
MODEL = "model"


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def prompts(count: int) -> list[list[int]]:
    """Prompts that share prefixes of any length. None ends with a block, because the last token of
    a prompt is never taken from the cache.
    """
    made: list[list[int]] = []
    for _ in range(count):
        prompt = list(random.choice(made)) if made and random.random() < 0.8 else []
        prompt = prompt[: random.randint(0, len(prompt))]
        prompt += random.choices(range(100, 200), k=random.randint(1, 200))
        made.append([*prompt, 100] if len(prompt) % BLOCK == 0 else prompt)
    return made


async def cached_tokens(session: aiohttp.ClientSession, prompt: list[int]) -> int:
    """How many tokens of `prompt` the server had."""
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
    async with session.post("/v1/completions", json=body) as response:
        response.raise_for_status()
        usage = (await response.json())["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


async def expected_blocks(service: Any, prompt: list[int]) -> int:
    """How many blocks of `prompt` the service takes to be cached."""
    await asyncio.sleep(SETTLE_SECONDS)
    scores = await service.overlap_scores({"model_name": MODEL, "token_ids": prompt})
    [worker] = scores["workers"]
    return int(worker["device_blocks"])


async def measure(url: str, events: str, replay: str, count: int) -> None:
    """Compare and report."""
    service = import_module("dynamo._core").SelectionService()
    worker = {"worker_id": 1, "model_name": MODEL, "endpoint": url, "block_size": BLOCK}
    await service.upsert_worker(worker | {"kv_events_endpoint": events, "replay_endpoint": replay})
    equal = hits = 0
    async with aiohttp.ClientSession(url) as session:
        await cached_tokens(session, [1] * BLOCK)
        await asyncio.sleep(1)  # the subscription takes a moment
        for prompt in prompts(count):
            expected = await expected_blocks(service, prompt)
            measured = await cached_tokens(session, prompt) // BLOCK
            hits += measured > 0
            equal += expected == measured
            if expected != measured:
                print(f"{len(prompt)} tokens: {expected} blocks expected, {measured} cached")
        async with session.get("/metrics") as response:
            lines = (await response.text()).splitlines()
    service.shutdown()
    print(f"{count} requests, {hits} of them with hits: {equal} expected as measured")
    print(*(line for line in lines if line.startswith("radixserve_evicted_tokens")), sep="\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("options", nargs="*", help="of radixserve serve, after --")
    given = parser.parse_args()
    random.seed(7)
    events, replay = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    options = ["--fake-model", "--kv-budget", "128KiB", "--kv-events", events]
    options += ["--kv-events-replay", replay, *given.options]
    with tempfile.TemporaryFile() as log, server(options, log=log) as url:
        asyncio.run(measure(url, events, replay, given.requests))


if __name__ == "__main__":
    main()

"""Whether vLLM's router sends prompts where our KV events say that they are cached.

    pip install vllm-router
    python benchmarks/bench_vllm_router.py [--router vllm-router]

Of 40 prompts each of two servers computes a half. Then the router gets all of them, longer by a
turn, once with the policy kv_aware and once with round_robin: tokens that hit, as a share of those
that either server has.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator

import aiohttp

from radixserve.loadtest.server import server

PROMPTS = 40
BLOCK = 16  # tokens


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def tokens(low: int, high: int) -> list[int]:
    """Some tokens."""
    return random.choices(range(100, 200), k=random.randint(low, high))


async def hits(servers: list[str], router: str, model: str) -> float:
    """The share of cached tokens that hit through the router."""
    random.seed(7)
    prompts = [tokens(40, 120) for _ in range(PROMPTS)]
    cached = 0
    async with aiohttp.ClientSession() as session:

        async def ask(url: str, prompt: list[int]) -> int:
            body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
            async with session.post(f"{url}/v1/completions", json=body) as response:
                response.raise_for_status()
                usage = (await response.json())["usage"]
            return int(usage["prompt_tokens_details"]["cached_tokens"])

        for number, prompt in enumerate(prompts):
            await ask(servers[number % 2], prompt)
        await asyncio.sleep(1)  # until events have arrived
        for prompt in random.sample(prompts, len(prompts)):
            cached += await ask(router, prompt + tokens(20, 60))
    return cached / sum(map(len, prompts))


@contextlib.contextmanager
def routed(program: str, policy: str, workers: dict[str, tuple[str, str]]) -> Iterator[str]:
    """The URL of a router in front of workers, given with their addresses of events and replay."""
    port = free_port()
    command = [program, "--policy", policy, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--prometheus-port", str(free_port()), "--worker-urls", *workers]
    if policy == "kv_aware":
        for url, (events, replay) in workers.items():
            command += ["--kv-event-source", f"{url}={events}"]
            command += ["--kv-event-replay-source", f"{url}={replay}"]
        command += ["--kv-event-block-size", str(BLOCK), "--kv-event-model", "model"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _wait(url: str) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):
            return
        time.sleep(0.1)
    raise TimeoutError(url)


def run(program: str, policy: str) -> str:
    """Measure one policy."""
    with contextlib.ExitStack() as stack:
        workers = {}
        for _ in range(2):
            addresses = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
            options = ["--fake-model", "--kv-events", addresses[0]]
            options += ["--kv-events-replay", addresses[1]]
            log = stack.enter_context(tempfile.TemporaryFile())
            url = stack.enter_context(server(options, log=log))
            workers[url] = (addresses[0], addresses[1])
        with urllib.request.urlopen(f"{next(iter(workers))}/v1/models") as response:
            model = json.load(response)["data"][0]["id"]
        router = stack.enter_context(routed(program, policy, workers))
        share = asyncio.run(hits(list(workers), router, model))
    return f"{policy}: {share:.0%} of what is cached hits"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--router", default="vllm-router", help="the program [vllm-router]")
    given = parser.parse_args()
    for policy in ("kv_aware", "round_robin"):
        print(run(given.router, policy), flush=True)


if __name__ == "__main__":
    main()

"""Time to the first token of a prompt of about 1,400 tokens, alone on the server: never seen, and
seen before.

    python benchmarks/bench_ttft.py [--rounds 5] [-- more options of radixserve serve]

Each round asks a prompt that shares nothing with the others, then asks it again five times. Prints
medians and the ratio, and the time per token after the first.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time

import aiohttp

from radixserve.loadtest.client import Answer, ask
from radixserve.loadtest.server import server

PROMPT_TOKENS = 1400
WARM = 5


async def first_token(
    session: aiohttp.ClientSession, model: str, prompt: list[int]
) -> tuple[float, float]:
    """Seconds to the first token, and per token after it."""
    answer = Answer()
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": 9,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    started = time.perf_counter()
    await ask(session, "/v1/completions", body, answer)
    arrivals = answer.arrivals[0]
    return arrivals[0] - started, (arrivals[-1] - arrivals[0]) / max(1, len(arrivals) - 1)


async def measure(url: str, rounds: int) -> None:
    """Ask and print."""
    draw, cold, warm, per_token = random.Random(1), [], [], []
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=300)) as session:
        async with session.get("/v1/models") as response:
            model = (await response.json())["data"][0]["id"]
        for number in range(rounds + 1):
            prompt = [draw.randrange(300, 40_000) for _ in range(PROMPT_TOKENS)]
            times = [await first_token(session, model, prompt) for _ in range(1 + WARM)]
            if number:  # the first round warms the server up
                cold.append(times[0][0])
                warm += [first for first, _ in times[1:]]
                per_token += [token for _, token in times[1:]]
    medians = [statistics.median(values) for values in (cold, warm, per_token)]
    print("| cold TTFT, s | warm TTFT, s | cold / warm | per token, ms |\n|---|---|---|---|")
    print(
        f"| {medians[0]:.3f} | {medians[1]:.4f} | {medians[0] / medians[1]:.0f}x | "
        f"{medians[2] * 1e3:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("options", nargs="*", help="of radixserve serve")
    chosen = parser.parse_args()
    with server(chosen.options) as url:
        asyncio.run(measure(url, chosen.rounds))


if __name__ == "__main__":
    main()

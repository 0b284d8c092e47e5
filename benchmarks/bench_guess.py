"""Whether the time to the first token tells that another tenant has a prefix in the cache.

    python benchmarks/bench_guess.py [--samples 500] [--tokens 96]

On a real server with the embedded model, for every sample: one tenant asks a new prompt; then, in
an order drawn each time, another tenant asks the same prompt (a guess that is right) and a new one
of the same length, and the first tenant asks its own again, the positive control. Each answer has
one token. Guesses and own prompts are compared with new ones by the test of Mann and Whitney
(two-sided, normal approximation). AUC is the share of pairs in which the new prompt took longer:
0.5 if nothing can be told, 1 if all can. Power is the share of draws, with replacement from the new
prompts, in which the test finds at 5 % that guesses are faster by so much.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import tempfile
import time
from pathlib import Path

import aiohttp
import numpy as np
import numpy.typing as npt

from radixserve.loadtest.server import server

KEYS = "[tenants.one]\nkeys = ['one']\n[tenants.other]\nkeys = ['other']\n"
DRAWS = 1000  # for the power
Times = npt.NDArray[np.float64]


async def asked(session: aiohttp.ClientSession, prompt: list[int], key: str) -> float:
    """Seconds until a prompt is answered with one token."""
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
    began = time.perf_counter()
    async with session.post("/v1/completions", json=body, headers={"x-api-key": key}) as response:
        response.raise_for_status()
        await response.read()
    return time.perf_counter() - began


def fresh(length: int) -> list[int]:
    return random.choices(range(1000, 9000), k=length)


async def sampled(session: aiohttp.ClientSession, samples: int, tokens: int) -> dict[str, Times]:
    """Seconds of each kind of request, interleaved."""
    found: dict[str, list[float]] = {"guessed": [], "new": [], "own": []}
    for _ in range(samples):
        secret = fresh(tokens)
        await asked(session, secret, "one")
        kinds = {
            "guessed": (secret, "other"),
            "new": (fresh(tokens), "other"),
            "own": (secret, "one"),
        }
        for kind in random.sample(sorted(kinds), k=len(kinds)):
            found[kind].append(await asked(session, *kinds[kind]))
    return {kind: np.array(seconds) for kind, seconds in found.items()}


def mann_whitney(faster: Times, slower: Times) -> tuple[float, float]:
    """AUC and p (two-sided). Ties, which times do not have, count as half."""
    n, m = len(faster), len(slower)
    places = np.searchsorted(np.sort(faster), slower, "left").sum()
    places += np.searchsorted(np.sort(faster), slower, "right").sum()
    auc = places / 2 / (n * m)
    z = (auc - 0.5) / math.sqrt((n + m + 1) / (12 * n * m))
    return float(auc), math.erfc(abs(z) / math.sqrt(2))


def power(new: Times, difference: float) -> float:
    """How often the test finds a difference of so many seconds between as many samples."""
    draw = np.random.default_rng(0)
    pairs = (draw.choice(new, (2, len(new))) for _ in range(DRAWS))
    return sum(mann_whitney(one - difference, two)[1] < 0.05 for one, two in pairs) / DRAWS


def report(found: dict[str, Times]) -> None:
    new = found["new"]
    for kind, seconds in found.items():
        quartiles = ", ".join(f"{each * 1e3:.1f}" for each in np.percentile(seconds, (25, 50, 75)))
        auc, p = mann_whitney(seconds, new)
        against = "" if kind == "new" else f"; against new: AUC {auc:.3f}, p = {p:.2g}"
        print(f"{kind:>8}: {len(seconds)} samples, quartiles {quartiles} ms{against}")
    saved = float(np.median(new) - np.median(found["own"]))
    for share in (0.01, 0.02, 0.05, 0.1):
        print(f"power for {share:.0%} of what a hit saves: {power(new, share * saved):.2f}")


async def measured(url: str, samples: int, tokens: int) -> dict[str, Times]:
    async with aiohttp.ClientSession(url) as session:
        await sampled(session, 10, tokens)  # until everything is compiled and paged in
        return await sampled(session, samples, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=96)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.toml"
        keys.write_text(KEYS)
        with server(["--api-key-file", str(keys)]) as url:
            report(asyncio.run(measured(url, chosen.samples, chosen.tokens)))


if __name__ == "__main__":
    main()

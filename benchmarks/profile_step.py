"""Where a step's time goes: decode at batch 1, 8 and 16, and a chunk of 256 prompt tokens.

    GOMP_SPINCOUNT=5000 python benchmarks/profile_step.py [--steps 20] [--model FOLDER_OR_NAME]
        [--dtype bfloat16] [--threads N]

An engine without its process takes real steps, from plan to commit. Wrappers around what the
forward and the step call add up wall time, all threads of it side by side:

    linears        packed weights, lm head included
    attention      the tile kernel, and once a step the making of its tiles
    row-wise       norms, rotary positions with the writing of K and V, gates
    sampling       from logits to token ids on the host, greedy
    rest           the rest: scheduler, cache, chunks to tensors, embedding, rotary tables, Python

Decoding sequences share a prefix of 1,024 tokens and have 100 of their own. Wrapped steps run layer
by layer; the server runs a step of few rows as one program, which has no parts to wrap. "As served"
is that step, measured in turns with the wrapped one. Medians, so that parts add up to the whole
only nearly.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from radixserve.cache.kvcache import KVCache
from radixserve.checkpoints.embedded import embedded_model
from radixserve.engine import flight
from radixserve.engine.core import EngineCore
from radixserve.engine.scheduler import Limits
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.model import decoder
from radixserve.model.load import load_model
from radixserve.model.operations import RunNow
from radixserve.model.runner import Runner
from radixserve.request import Request, Sampling
from radixserve.sampling import Samples
from radixserve.tensors.kv import KVPool

PREFIX, PRIVATE, CHUNK = 1024, 100, 256
BATCHES = (1, 8, 16)
SLOTS = 16_384
DEVICE = torch.device("cpu")

# Who is called for each part: the holder of the name and the name.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "linears": [(Gemm, "__call__")],
    "attention": [(RunNow, "attend")],
    "row-wise": [(RunNow, "_launch")],
    "sampling": [(flight, "sample"), (Samples, "wait")],
}

Profile = dict[str, float]
"""Seconds of one step by part."""


@contextmanager
def timed() -> Iterator[Profile]:
    """Adds up, until the block ends, how long calls of each part take. No part may call another."""
    seconds = dict.fromkeys(PARTS, 0.0)
    originals = [
        (holder, name, getattr(holder, name)) for calls in PARTS.values() for holder, name in calls
    ]
    for part, calls in PARTS.items():
        for holder, name in calls:
            setattr(holder, name, _timed(getattr(holder, name), part, seconds))
    try:
        yield seconds
    finally:
        for holder, name, original in originals:
            setattr(holder, name, original)


def _timed(function: Callable[..., Any], part: str, seconds: Profile) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments, **named)
        seconds[part] += time.perf_counter() - started
        return result

    return call


class Steps:
    """One engine, brought to where its next step is of the kind wanted."""

    def __init__(self, model: str, dtype: torch.dtype) -> None:
        loaded = load_model(model, DEVICE, dtype)
        assert isinstance(loaded.decoder, decoder.Decoder), (
            "this profile is for models that our decoder computes"
        )
        self._vocab, self._decoder = loaded.vocab_size, loaded.decoder
        self._most_recorded = loaded.decoder.most_recorded
        self._draw = random.Random(1)
        self._wraps = False
        self._prefix = self._tokens(PREFIX)
        runner = Runner(loaded, KVPool(loaded.shape, SLOTS, DEVICE))
        self._core = EngineCore(runner, KVCache(SLOTS), Limits(max(BATCHES), CHUNK))

    def decode(self, batch: int, steps: int) -> list[Profile]:
        """Steps of `batch` sequences that each compute one token."""
        names = [f"decode {i}" for i in range(batch)]
        for name in names:
            self._submit(name, self._prefix + self._tokens(PRIVATE - steps), 2 * steps + CHUNK)
        scheduler = self._core.scheduler
        while scheduler.waiting or any(sequence.num_pending > 1 for sequence in scheduler.running):
            self._core.step()
        profiles = [self._step() for _ in range(2 * steps)]
        for name in names:
            self._core.abort(name)
        return profiles

    def prefill(self, steps: int) -> list[Profile]:
        """Steps of one chunk that begins its prompt."""
        profiles = []
        for number in range(2 * steps):
            self._submit(f"prefill {number}", self._tokens(CHUNK), 1)
            profiles.append(self._step())
        return profiles

    def _tokens(self, count: int) -> list[int]:
        return [self._draw.randrange(self._vocab) for _ in range(count)]

    def _submit(self, name: str, prompt: list[int], max_tokens: int) -> None:
        sampling = Sampling(max_tokens=max_tokens, seed=0, temperature=0.0)
        self._core.submit(Request(id=name, prompt_ids=prompt, sampling=sampling), [])

    def _step(self) -> Profile:
        """A step with wrappers, or in its turn one as served: that has a total only."""
        self._wraps = not self._wraps
        self._decoder.most_recorded = 0 if self._wraps else self._most_recorded
        started = time.perf_counter()
        if not self._wraps:
            self._core.step()
            return {"as served": time.perf_counter() - started}
        with timed() as seconds:
            started = time.perf_counter()
            self._core.step()
            total = time.perf_counter() - started
        return {**seconds, "rest": total - sum(seconds.values()), "whole step": total}


def medians(profiles: list[Profile]) -> Profile:
    """Of each part, without the first steps of each kind: those warm up."""
    found: dict[str, list[float]] = {}
    for profile in profiles[4:]:
        for part, seconds in profile.items():
            found.setdefault(part, []).append(seconds)
    return {part: statistics.median(values) for part, values in found.items()}


def report(columns: dict[str, Profile]) -> None:
    """Markdown: a row per part; milliseconds and the share of the whole step."""
    print("| ms (share of the step) |", " | ".join(columns), "|")
    print("|---" * (len(columns) + 1) + "|")
    for part in (*PARTS, "rest", "whole step", "as served"):
        cells = (
            f"{by[part] * 1e3:.2f} ({by[part] / by['whole step']:.0%})" for by in columns.values()
        )
        print(f"| {part} |", " | ".join(cells), "|")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20, help="of each kind, 3 to 80")
    parser.add_argument("--model", default=None)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype: torch.dtype = getattr(torch, options.dtype)
    steps = Steps(options.model or str(embedded_model()), dtype)
    columns = {
        f"decode, batch {batch}": medians(steps.decode(batch, options.steps)) for batch in BATCHES
    }
    columns[f"prefill, {CHUNK} tokens"] = medians(steps.prefill(options.steps))
    report(columns)


if __name__ == "__main__":
    main()

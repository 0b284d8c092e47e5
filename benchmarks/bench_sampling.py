"""Time of one call of `sample` by what its rows ask for: python benchmarks/bench_sampling.py
[--device cuda]

Prints one Markdown table. Few tokens are likely and many are not, as in a language model.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from radixserve.request import Sampling
from radixserve.sampling import sample
from tests.rows import Row

KINDS: dict[str, dict[str, object]] = {
    "greedy": {"temperature": 0.0},
    "greedy, 5 logprobs": {"temperature": 0.0, "logprobs": 5},
    "greedy, all penalties": {
        "temperature": 0.0,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
    },
    "temperature 1": {},
    "min_p 0.05": {"min_p": 0.05},
    "top_k 50": {"top_k": 50},
    "top_k 50, top_p 0.9": {"top_k": 50, "top_p": 0.9},
    "top_p 0.9": {"top_p": 0.9},
    "top_p 0.99, temperature 2 (wide)": {"top_p": 0.99, "temperature": 2.0},
    "top_k 5,000": {"top_k": 5000},
}


def draw(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    """Sample `rows` and wait for the tokens."""
    sample(logits, rows).wait()


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def rows_of(kind: dict[str, object], batch: int, prompt_tokens: int, vocab: int) -> list[Row]:
    rng = np.random.default_rng(0)
    prompt, output = (rng.integers(0, vocab, n).astype(np.int32) for n in (prompt_tokens, 32))
    return [Row(Sampling(max_tokens=64, seed=i, **kind), prompt, output) for i in range(batch)]  # type: ignore[arg-type]


def zipf_logits(rows: int, vocab: int) -> torch.Tensor:
    """Probabilities proportional to rank**-1.5 with some noise, ranks shuffled among the ids."""
    generator = torch.Generator().manual_seed(0)
    ordered = torch.arange(1, vocab + 1).log().mul(-1.5)
    shuffled = torch.stack(
        [ordered[torch.randperm(vocab, generator=generator)] for _ in range(rows)]
    )
    return shuffled + torch.randn(rows, vocab, generator=generator).mul(0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    logits = zipf_logits(16, options.vocab).to(options.device)
    argmax = median_seconds(lambda: logits.argmax(-1).tolist(), options.repeats)
    print(f"torch.argmax alone, batch of 16, vocabulary {options.vocab:,}: {argmax * 1e3:.2f} ms\n")
    print("| rows ask for | batch 1, ms | batch 16, ms |\n|---|---|---|")
    for name, kind in KINDS.items():
        cells = []
        for batch in (1, 16):
            rows, some = rows_of(kind, batch, 1400, options.vocab), logits[:batch]
            work = partial(draw, some, rows)
            cells.append(median_seconds(work, options.repeats))
        print(f"| {name} | {cells[0] * 1e3:.2f} | {cells[1] * 1e3:.2f} |")


if __name__ == "__main__":
    main()

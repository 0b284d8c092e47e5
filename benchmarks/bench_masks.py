"""What grammars add to a decode step of 16 rows.

    python benchmarks/bench_masks.py [--pairs 300]
    python benchmarks/bench_masks.py --made-up [--pairs 100]

The first runs two engines with the embedded model as the server does, one with a grammar for each
row and one without, over contexts of the same length. They take turns step by step, because other
work on the machine comes and goes, and the wall-clock times of each pair of steps are compared. The
second counts the processor time of one thread over a model that only makes up logits: what masks,
forced tokens and the edit of the logits add to the step of any model with this vocabulary.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from radixserve.cache.kvcache import KVCache
from radixserve.checkpoints.embedded import embedded_model
from radixserve.config import Settings
from radixserve.engine.build import build_engine
from radixserve.engine.core import EngineCore
from radixserve.engine.counters import STEP_TOKENS
from radixserve.engine.grammars import grammars_of
from radixserve.engine.scheduler import Limits
from radixserve.model.heap import freed_at_once
from radixserve.request import Grammar, Request, Sampling
from radixserve.step import Chunk

ROWS = 16
PROMPT = 64  # tokens
LONGEST = 100  # steps after which the answers begin again
VOCAB = 49_152
# Answers to these go on for long, in strings, in numbers and between them.
KINDS = {
    "strings": Grammar(
        kind="json_schema",
        source='{"type": "array", "items": {"type": "string"}, "minItems": 999}',
    ),
    "objects with strings, numbers and enumerations": Grammar(
        kind="json_schema",
        source=json.dumps(
            {
                "type": "array",
                "minItems": 999,
                "items": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "minLength": 200},
                        "size": {"type": "number"},
                        "tags": {"type": "array", "items": {"enum": ["red", "blue", "green"]}},
                    },
                    "required": ["name", "size", "tags"],
                },
            }
        ),
    ),
}
Clock = Callable[[], float]


class MadeUp:
    """A model of no weights: few tokens are likely, and each token is followed by others."""

    def __init__(self) -> None:
        ordered = torch.arange(1, VOCAB + 1).log().mul(-1.5)
        shuffled = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))
        self._base = ordered[shuffled]

    def forward(
        self,
        chunks: Sequence[Chunk],
        drawn: torch.Tensor | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """See `StepModel`. One row for each chunk."""
        del drawn, between_layers  # steps run in turn, and there are no layers
        shifts = [int(chunk.token_ids[-1]) * 7 for chunk in chunks]
        return torch.stack([self._base.roll(shift) for shift in shifts])


def made_up_engine(folder: Path) -> EngineCore:
    torch.set_num_threads(1)
    with freed_at_once():
        pass  # from here on memory is kept as in a server that has loaded a model
    limits, cache = Limits(ROWS, 2048), KVCache(1 << 16, enabled=False)
    return EngineCore(MadeUp(), cache, limits, grammars=grammars_of(str(folder)))


def real_engine(folder: Path, threads: int) -> EngineCore:
    settings = Settings(max_running=ROWS, kv_budget=1 << 28, cache=False, threads=threads)
    core, _ = build_engine(settings, str(folder))
    return core


class Rows:
    """16 rows that decode, all with `grammar` or all without."""

    def __init__(self, core: EngineCore, grammar: Grammar | None, clock: Clock) -> None:
        self._core, self._grammar, self._clock = core, grammar, clock

    def begin(self) -> None:
        """Begin 16 answers, and end those of before."""
        for i in range(ROWS):
            self._core.abort(f"r{i}")
            sampling = Sampling(max_tokens=1000, seed=i, temperature=0.8, grammar=self._grammar)
            prompt = list(range(100 + i, 100 + i + PROMPT))
            self._core.submit(Request(id=f"r{i}", prompt_ids=prompt, sampling=sampling), [])
        self._core.stats()
        self.step()

    def step(self) -> float:
        """Milliseconds of the next step in which every row computes one token, from plan to commit.
        Steps with a prompt or with forced tokens compute more, and do not count.
        """
        while True:
            begun = self._clock()
            self._core.step()
            seconds = self._clock() - begun
            if self._core.stats().seen(STEP_TOKENS) == [ROWS]:
                return seconds * 1e3
            time.sleep(self._core.patience or 0)


def line(name: str, plain: Rows, constrained: Rows, pairs: int) -> str:
    """A line of the table: the median step without and with a grammar, and of the pairs the median
    difference and ratio.
    """
    found = []
    for i in range(pairs):
        if i % LONGEST == 0:
            plain.begin()
            constrained.begin()
        found.append((plain.step(), constrained.step()))
    without, within = np.array(found).T
    low, middle, high = np.quantile(within / without, (0.25, 0.5, 0.75))
    cells = (
        f"{np.median(without):.2f} | {np.median(within):.2f} | {np.median(within - without):.2f}"
    )
    return f"| {name} | {cells} | {middle:.3f} | {low:.3f} to {high:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=300, help="of steps, for each grammar")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--made-up", action="store_true")
    options = parser.parse_args()
    folder = embedded_model()
    if options.made_up:
        clock, engines = time.thread_time, [made_up_engine(folder) for _ in range(2)]
    else:
        clock, engines = time.perf_counter, [real_engine(folder, options.threads) for _ in range(2)]
    print(f"| {ROWS} rows | without, ms | with, ms | added, ms | ratio | its quartiles |")
    print("|---|---|---|---|---|---|")
    for name, grammar in KINDS.items():
        rows = Rows(engines[0], None, clock), Rows(engines[1], grammar, clock)
        print(line(name, *rows, options.pairs), flush=True)


if __name__ == "__main__":
    main()

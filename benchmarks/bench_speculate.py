"""Speculation: tokens per second of a stream with `speculate = tree`, relative to without.

    python benchmarks/bench_speculate.py [--rounds 5] [--tokens 200]

The embedded model, two engines in this process, one answer after the other, alternately by both
engines, on the same prompts and seeds. Checks that the answers are the same. Workloads:

    replayed     an answer that both engines have given before: the tree knows it
    quoting      "repeat this text", after the text; greedy
    new, greedy  questions about different things; small models repeat themselves in greedy answers
    new, random  the same at temperature 1, with a new seed each time: hardly anything repeats
    8 streams    the same, eight at a time

Prints the ratio of the times without and with speculation, median and quartiles over rounds, and
which part of the answers' tokens were right guesses.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from radixserve.checkpoints.embedded import embedded_model
from radixserve.config import Settings
from radixserve.engine.build import build_engine
from radixserve.engine.core import EngineCore
from radixserve.engine.counters import DRAFT_TOKENS, FROM_TEXT, FROM_TREE, RIGHT
from radixserve.request import Request, Sampling

TOPICS = (
    *("volcanoes", "chess openings", "bread", "the tides", "tax law", "beekeeping", "Fourier"),
    *("glaciers", "typography", "the Silk Road", "vaccines", "jazz", "compilers", "tea", "maps"),
)
TEXT = (
    "The committee met on the third of May and heard reports of seven members. Ms Albright asked "
    "for 4,215 more tiles, blue and grey; Mr Ferrante wanted none. It was agreed to write to the "
    "harbour office in Trieste, to keep the old crane until autumn, and to paint door 12 green."
)
STREAMS = 8

Ask = Callable[[int], list[tuple[str, Sampling]]]
"""The questions of a round, and how their answers are drawn."""


def engine(folder: Path, speculate: str) -> EngineCore:
    settings = Settings(kv_budget=1 << 29, speculate=speculate, max_running=STREAMS)  # type: ignore[arg-type]
    core, _ = build_engine(settings, str(folder))
    return core


def workloads(tokens: int) -> dict[str, Ask]:
    def questions(round_: int, count: int, temperature: float) -> list[tuple[str, Sampling]]:
        return [
            (
                f"Tell me something new about {TOPICS[(round_ + i) % len(TOPICS)]}.",
                Sampling(max_tokens=tokens, seed=round_ * STREAMS + i, temperature=temperature),
            )
            for i in range(count)
        ]

    quoting = Sampling(max_tokens=80, seed=0, temperature=0.0)
    return {
        "replayed": lambda round_: questions(0, 1, 0.8),
        "quoting": lambda round_: [
            (f"{TEXT} {round_}\n\nRepeat this text, word for word.", quoting)
        ],
        "new, greedy": lambda round_: questions(round_, 1, 0.0),
        "new, random": lambda round_: questions(round_, 1, 1.0),
        f"{STREAMS} streams": lambda round_: questions(100 + round_, STREAMS, 1.0),
    }


def answers(core: EngineCore, requests: list[Request]) -> tuple[float, dict[str, list[int]]]:
    """Seconds per token from the first token on, and the answers."""
    found: dict[str, list[int]] = {each.id: [] for each in requests}
    for each in requests:
        core.submit(each, [])
    begun = 0.0
    while core.has_work:
        for event in core.step():
            found[event.request_id] += event.token_ids
        if not begun and all(found.values()):
            begun, first = time.perf_counter(), sum(map(len, found.values()))
    return (time.perf_counter() - begun) / (sum(map(len, found.values())) - first), found


def right(core: EngineCore) -> float:
    stats = core.stats()
    return sum(stats.value(DRAFT_TOKENS, source, RIGHT) for source in (FROM_TREE, FROM_TEXT))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    folder = embedded_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain, guessing = engine(folder, "off"), engine(folder, "tree")
    print("| workload | tokens/s without | with | ratio | quartiles | right guesses |")
    print("|---|---|---|---|---|---|")
    for name, ask in workloads(options.tokens).items():
        ratios, speeds, share = [], [], []
        for round_ in range(options.rounds + 1):
            asked = ask(round_)
            requests = [
                Request(
                    id=f"{name}{round_}-{i}",
                    prompt_ids=tokenizer.apply_chat_template(
                        [{"role": "user", "content": text}], add_generation_prompt=True
                    )["input_ids"],
                    sampling=sampling,
                )
                for i, (text, sampling) in enumerate(asked)
            ]
            before = right(guessing)
            took, expected = answers(plain, requests)
            took_guessing, got = answers(guessing, requests)
            assert got == expected, "an answer depends on speculation"
            if round_:  # before, the tree was empty
                ratios.append(took / took_guessing)
                speeds.append((1 / took, 1 / took_guessing))
                share.append((right(guessing) - before) / sum(map(len, got.values())))
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        without, within = np.median(speeds, axis=0)
        print(
            f"| {name} | {without:.1f} | {within:.1f} | {middle:.2f} | {low:.2f} to {high:.2f} | "
            f"{np.median(share):.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

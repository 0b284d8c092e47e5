"""What grammars add to a decode step, and whether constrained answers are what they should be.

    python benchmarks/bench_constrained.py [--steps 80]
    python benchmarks/bench_constrained.py --schemas FILE.jsonl [--answers 200] [--threads N]

The first counts the processor time of one thread for decode steps of 16 rows over a model that only
makes up logits, with a grammar for each row and without, in turns of 20 steps. The difference is
what masks, forced tokens and the edit of the logits add to the step of any model with this
vocabulary. The second asks the embedded model for a JSON document for each schema of FILE (one
{"schema": ...} per line) that compiles, at temperature 0.7, until there are enough answers; each
has to parse and to validate (jsonschema) unless max_tokens cut it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import tokenizers
import torch

from radixserve.cache.kvcache import KVCache
from radixserve.checkpoints.embedded import embedded_model
from radixserve.config import Settings
from radixserve.engine.build import build_engine
from radixserve.engine.core import EngineCore
from radixserve.engine.grammars import grammars_of
from radixserve.engine.scheduler import Limits
from radixserve.errors import BadRequest
from radixserve.grammar import Vocabulary, check
from radixserve.model.heap import freed_at_once
from radixserve.request import Grammar, Request, Sampling
from radixserve.step import Chunk

ROWS = 16
TURN = 20  # steps
VOCAB = 49_152
# Answers to these go on for long, in strings, in numbers and between them.
KINDS: dict[str, Grammar | None] = {
    "no grammar": None,
    "strings": Grammar(
        kind="json_schema",
        source='{"type": "array", "items": {"type": "string"}, "minItems": 999}',
    ),
    "a schema": Grammar(
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


def engine(folder: Path, threads: int) -> EngineCore:
    """The server's engine for the embedded model, in this process."""
    settings = Settings(max_running=ROWS, kv_budget=1 << 30, threads=threads)
    core, _ = build_engine(settings, str(folder))
    return core


class MadeUp:
    """A model of no weights: few tokens are likely, and each token is followed by others."""

    def __init__(self) -> None:
        ordered = torch.arange(1, VOCAB + 1).log().mul(-1.5)
        shuffled = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))
        self._base = ordered[shuffled]

    def forward(self, chunks: Sequence[Chunk], drawn: torch.Tensor | None = None) -> torch.Tensor:
        """See `StepModel`. One row for each chunk."""
        del drawn  # steps run in turn
        shifts = [int(chunk.token_ids[-1]) * 7 for chunk in chunks]
        return torch.stack([self._base.roll(shift) for shift in shifts])


def decode_seconds(core: EngineCore, grammar: Grammar | None) -> list[float]:
    """Processor seconds of decode steps in which every row computes one token, from plan to
    commit.
    """
    for i in range(ROWS):
        sampling = Sampling(max_tokens=1000, seed=i, temperature=0.8, grammar=grammar)
        core.submit(Request(id=f"r{i}", prompt_ids=[100 + i], sampling=sampling), [])
    seconds: list[float] = []
    core.stats()
    while len(seconds) < TURN and core.has_work:
        begun = time.thread_time()
        core.step()
        taken = time.thread_time() - begun
        if core.stats().step_tokens == [ROWS]:
            seconds.append(taken)
    for i in range(ROWS):
        core.abort(f"r{i}")
    return seconds


def step_table(folder: Path, steps: int) -> str:
    """Markdown: median milliseconds of a step for each kind of grammar, and what that adds."""
    torch.set_num_threads(1)
    with freed_at_once():
        pass  # from here on memory is kept as in a server that has loaded a model
    grammars, limits = grammars_of(str(folder)), Limits(ROWS, 256)
    core = EngineCore(MadeUp(), KVCache(1 << 16), limits, grammars=grammars)
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    for grammar in KINDS.values():
        decode_seconds(core, grammar)  # warms caches up
    for _ in range(0, steps, TURN):
        for name, grammar in KINDS.items():
            seconds[name] += decode_seconds(core, grammar)
    medians = {name: statistics.median(values) * 1e3 for name, values in seconds.items()}
    lines = [
        f"| {name} | {median:.2f} | {median - medians['no grammar']:.2f} |"
        for name, median in medians.items()
    ]
    return "\n".join([f"| {ROWS} rows | a step, ms | added, ms |", "|---|---|---|", *lines])


def schemas_of(path: Path, vocabulary: Vocabulary) -> Iterator[tuple[Any, Grammar]]:
    """The schemas of the file that compile, in endless rounds."""
    found = []
    for line in path.read_text().splitlines():
        schema = json.loads(line)["schema"]
        grammar = Grammar(kind="json_schema", source=json.dumps(schema))
        try:
            check(grammar, vocabulary)
        except BadRequest:
            continue
        found.append((schema, grammar))
    yield from itertools.cycle(found)


def ask(core: EngineCore, requests: list[Request]) -> dict[str, tuple[list[int], str]]:
    """The tokens of each answer, and how it ended."""
    tokens: dict[str, list[int]] = {each.id: [] for each in requests}
    finish: dict[str, str] = {}
    for each in requests:
        core.submit(each, [])
    while core.has_work:
        for event in core.step():
            tokens[event.request_id] += event.token_ids
            if event.finish:
                finish[event.request_id] = event.finish
        if core.patience:
            time.sleep(core.patience)
    return {name: (tokens[name], finish[name]) for name in tokens}


def verdict(schema: Any, text: str, finish: str) -> str:
    """Of one answer."""
    if finish != "stop":
        return f"ended with {finish}"
    try:
        jsonschema.validate(json.loads(text), schema)
    except ValueError:
        return "does not parse"
    except jsonschema.ValidationError as error:
        return f"does not validate: {error.message[:100]}"
    return "valid"


def answers(core: EngineCore, folder: Path, path: Path, number: int) -> Counter[str]:
    """The verdicts on `number` answers that max_tokens did not cut, and on those that it did."""
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    found: Counter[str] = Counter()
    schemas = enumerate(schemas_of(path, Vocabulary(backend.to_str())))
    while sum(found.values()) - found["ended with length"] < number:
        batch = list(itertools.islice(schemas, 2 * ROWS))
        requests = []
        for i, (schema, grammar) in batch:
            asked = f"Write a short JSON document for this schema: {json.dumps(schema)[:2000]}"
            prompt = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
            sampling = Sampling(
                max_tokens=400, seed=i, temperature=0.7, grammar=grammar, stop_token_ids=(2,)
            )
            ids = backend.encode(prompt, add_special_tokens=False).ids
            requests.append(Request(id=str(i), prompt_ids=ids, sampling=sampling))
        outcomes = ask(core, requests)
        for i, (schema, _) in batch:
            ids, finish = outcomes[str(i)]
            found[verdict(schema, backend.decode(ids), finish)] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--schemas", type=Path)
    parser.add_argument("--answers", type=int, default=200)
    options = parser.parse_args()
    folder = embedded_model()
    if options.schemas:
        core = engine(folder, options.threads)
        for name, count in answers(core, folder, options.schemas, options.answers).most_common():
            print(f"{count} {name}")
        return
    print(step_table(folder, options.steps))


if __name__ == "__main__":
    main()

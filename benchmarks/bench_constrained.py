"""Whether constrained answers are what they should be.

    python benchmarks/bench_constrained.py --schemas FILE.jsonl [--answers 200] [--threads N]

FILE has one {"schema": ...} per line. The embedded model is asked for a JSON document for each
schema that compiles, 16 at a time, at temperature 0.7, in rounds until enough answers have ended by
themselves. Each of these has to parse and to validate against the schema (jsonschema). Answers that
`max_tokens` cuts are counted apart: a model of this size sometimes repeats itself in a string or a
list that its schema allows to go on. Ends with status 1 if an answer is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import tokenizers

from radixserve.checkpoints.embedded import embedded_model
from radixserve.config import Settings
from radixserve.engine.build import build_engine
from radixserve.errors import BadRequest
from radixserve.grammar import Vocabulary, check
from radixserve.grammar.closed import closed
from radixserve.request import Grammar, Request, Sampling

ROWS = 16
MAX_TOKENS = 150
END = 2  # <|im_end|>
VALID, CUT = "valid", "cut by max_tokens"


def usable_schemas(path: Path, vocabulary: Vocabulary) -> list[tuple[Any, Grammar]]:
    """The schemas of the file that compile, with their grammars as the server makes them."""
    found = []
    for line in path.read_text().splitlines():
        schema = json.loads(line)["schema"]
        grammar = Grammar(kind="json_schema", source=json.dumps(closed(schema)))
        try:
            check(grammar, vocabulary)
        except BadRequest:
            continue
        found.append((schema, grammar))
    return found


def verdict(schema: Any, text: str, finish: str) -> str:
    """Of one answer."""
    if finish == "length":
        return CUT
    if finish != "stop":
        return f"ended with {finish}"
    try:
        jsonschema.validate(json.loads(text), schema)
    except ValueError:
        return f"does not parse: {text[:200]}"
    except jsonschema.ValidationError as error:
        return f"does not validate: {error.message[:200]}"
    return VALID


class Answers:
    """Asks the embedded model until enough answers have ended, always 16 at a time."""

    def __init__(self, folder: Path, schemas: list[tuple[Any, Grammar]], threads: int) -> None:
        settings = Settings(max_running=ROWS, kv_budget=1 << 30, threads=threads)
        self._core, _ = build_engine(settings, str(folder))
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._schemas = enumerate(itertools.cycle(schemas))
        self._asked: dict[str, Any] = {}  # schemas by request
        self._tokens: dict[str, list[int]] = {}
        self.num_tokens = 0

    def verdicts(self, number: int) -> Iterator[str]:
        """The verdict on each answer, until all are in; `number` of them were not cut."""
        missing = number
        while missing > 0 or self._asked:
            while len(self._asked) < min(ROWS, missing):
                self._ask()
            for each in self._step():
                missing -= each != CUT
                yield each

    def _ask(self) -> None:
        i, (schema, grammar) = next(self._schemas)
        text = f"Write a short JSON document for this schema: {json.dumps(schema)[:200]}"
        prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        sampling = Sampling(
            max_tokens=MAX_TOKENS, seed=i, temperature=0.7, grammar=grammar, stop_token_ids=(END,)
        )
        ids = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        self._asked[str(i)], self._tokens[str(i)] = schema, []
        self._core.submit(Request(id=str(i), prompt_ids=ids, sampling=sampling), [])

    def _step(self) -> Iterator[str]:
        for event in self._core.step():
            tokens = self._tokens[event.request_id]
            tokens += event.token_ids
            if event.finish:
                self.num_tokens += len(tokens)
                text = self._tokenizer.decode(tokens)
                yield verdict(self._asked.pop(event.request_id), text, event.finish)
        time.sleep(self._core.patience or 0)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schemas", type=Path, required=True)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    folder, begun = embedded_model(), time.monotonic()
    vocabulary = Vocabulary((folder / "tokenizer.json").read_text())
    schemas = usable_schemas(options.schemas, vocabulary)
    answers, found = Answers(folder, schemas, options.threads), Counter[str]()
    for each in answers.verdicts(options.answers):
        found[each] += 1
        if found.total() % 10 == 0:
            seconds = time.monotonic() - begun
            print(f"{seconds:4.0f} s  {dict(found.most_common(3))}", file=sys.stderr, flush=True)
    print(f"{len(schemas)} schemas, {answers.num_tokens} tokens")
    for name, count in found.most_common():
        print(f"{count} {name}")
    return int(not found.keys() <= {VALID, CUT})


if __name__ == "__main__":
    sys.exit(main())

"""How well grammar libraries enforce JSON Schemas, and how long compiling and masks take.

    python benchmarks/bench_grammars.py --schemas FILE.jsonl --suite FOLDER [--library xgrammar]

A line of FILE is {"id", "schema", "tests": [{"data", "valid"}]}. FOLDER holds files of the JSON
Schema Test Suite, one per keyword. Every instance is written as JSON and given token by token, with
the embedded model's tokenizer; a token that the mask forbids is a rejection, and so is an end where
the library does not allow one. Prints a Markdown table for each, and with --details what was
refused and each wrong verdict. llguidance is tried as this package uses it; for xgrammar
install it (pip install --no-deps xgrammar apache-tvm-ffi).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tokenizers

from radixserve.checkpoints.embedded import embedded_model
from radixserve.errors import BadRequest
from radixserve.grammar import Compiled, Vocabulary, compile_grammar
from radixserve.grammar.schema import ENFORCED
from radixserve.request import Grammar


class Refused(Exception):
    """The library does not compile this schema."""


class Output(Protocol):
    """One output on its way through a compiled schema."""

    def mask(self) -> npt.NDArray[np.uint32]:
        """The tokens that may follow, one bit each."""

    def consume(self, token_id: int) -> bool:
        """Go on behind a token."""

    def may_end(self) -> bool:
        """Whether the output may end here."""


class Library(Protocol):
    """A library that compiles schemas."""

    def compile(self, schema: Any) -> Any:
        """The compiled schema. Raises Refused."""

    def output(self, compiled: Any) -> Output:
        """A new output."""


class Ours:
    """llguidance, as `radixserve.grammar` uses it."""

    def __init__(self, folder: Path) -> None:
        self._vocabulary = Vocabulary((folder / "tokenizer.json").read_text())

    def compile(self, schema: Any) -> Compiled:
        """See `Library.compile`."""
        try:
            wanted = Grammar(kind="json_schema", source=json.dumps(schema))
            return compile_grammar(wanted, self._vocabulary)
        except BadRequest as refusal:
            raise Refused(refusal.message) from refusal

    def output(self, compiled: Compiled) -> Output:
        """See `Library.output`."""
        return _Ours(compiled)


class _Ours:
    def __init__(self, compiled: Compiled) -> None:
        self._matcher = compiled.matcher()
        self.mask = self._matcher.mask

    def consume(self, token_id: int) -> bool:
        return self._matcher.consume([token_id])

    def may_end(self) -> bool:
        return self._matcher.is_accepting


class XGrammar:
    """xgrammar with the semantics of JSON Schema (its default forbids additional properties)."""

    def __init__(self, folder: Path) -> None:
        import xgrammar
        from transformers import PreTrainedTokenizerFast

        self._xgrammar = xgrammar
        loaded = PreTrainedTokenizerFast.from_pretrained(str(folder))
        self._info = xgrammar.TokenizerInfo.from_huggingface(loaded)
        self._compiler = xgrammar.GrammarCompiler(self._info, max_threads=1, cache_enabled=False)

    def compile(self, schema: Any) -> Any:
        """See `Library.compile`."""
        try:
            return self._compiler.compile_json_schema(json.dumps(schema), strict_mode=False)
        except Exception as error:  # its exceptions have no common base
            raise Refused(str(error).partition("\n")[0]) from error

    def output(self, compiled: Any) -> Output:
        """See `Library.output`."""
        return _XGrammar(self._xgrammar, compiled, self._info.vocab_size)


class _XGrammar:
    def __init__(self, xgrammar: Any, compiled: Any, vocab_size: int) -> None:
        self._matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=False)
        self._bitmask = xgrammar.allocate_token_bitmask(1, vocab_size)

    def mask(self) -> npt.NDArray[np.uint32]:
        self._matcher.fill_next_token_bitmask(self._bitmask)
        words: npt.NDArray[np.uint32] = self._bitmask[0].numpy().view(np.uint32)
        return words

    def consume(self, token_id: int) -> bool:
        return bool(self._matcher.accept_token(token_id))

    def may_end(self) -> bool:
        return bool(self._matcher.is_completed())


LIBRARIES: dict[str, Callable[[Path], Library]] = {"llguidance": Ours, "xgrammar": XGrammar}


@dataclass(frozen=True, slots=True)
class Case:
    """A schema and instances, each with whether it is valid."""

    name: str
    schema: Any
    instances: list[tuple[Any, bool]]


@dataclass(slots=True)
class Result:
    """What a library did with some cases."""

    num_schemas: int = 0
    num_compiled: int = 0
    # (is valid, was accepted) of the instances of compiled schemas
    verdicts: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    compile_seconds: list[float] = field(default_factory=list)
    mask_seconds: list[float] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def row(self, name: str) -> str:
        """A line of the table."""
        right, share = self.verdicts, self.num_compiled / self.num_schemas
        cells = (
            f"{self.num_compiled} of {self.num_schemas} ({share:.1%})",
            f"{right[True, True]} of {right[True, True] + right[True, False]}",
            f"{right[False, False]} of {right[False, False] + right[False, True]}",
            f"{_quantiles(self.compile_seconds, 1e3)} ms",
            f"{_quantiles(self.mask_seconds, 1e6)} us",
        )
        return f"| {name} | {' | '.join(cells)} |"


HEAD = """\
| library | schemas compiled | valid accepted | invalid rejected | compiling p50 / p99 / max \
| a mask p50 / p99 / max |
|---|---|---|---|---|---|"""


def _quantiles(seconds: Sequence[float], unit: float) -> str:
    found = np.quantile(seconds, (0.5, 0.99, 1)) * unit
    return " / ".join(f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in found)


def run(library: Library, cases: Sequence[Case], backend: tokenizers.Tokenizer) -> Result:
    """Compile every schema and give every instance to those that compile."""
    result = Result()
    for case in cases:
        result.num_schemas += 1
        begun = time.perf_counter()
        try:
            compiled = library.compile(case.schema)
        except Refused as refusal:
            result.refusals[str(refusal)] += 1
            continue
        result.num_compiled += 1
        result.compile_seconds.append(time.perf_counter() - begun)
        for instance, is_valid in case.instances:
            text = json.dumps(instance, ensure_ascii=False)
            ids = backend.encode(text, add_special_tokens=False).ids
            is_accepted = accepts(library.output(compiled), ids, result.mask_seconds)
            result.verdicts[is_valid, is_accepted] += 1
            if is_accepted != is_valid:
                was = "accepted" if is_accepted else "rejected"
                result.wrong.append(f"{case.name}: {was} {text[:100]}")
    return result


def accepts(output: Output, token_ids: Sequence[int], seconds: list[float]) -> bool:
    """Whether every token is allowed in its turn and the output may end behind the last."""
    for token_id in token_ids:
        begun = time.perf_counter()
        words = output.mask()
        seconds.append(time.perf_counter() - begun)
        if not words[token_id >> 5] >> (token_id & 31) & 1 or not output.consume(token_id):
            return False
    return output.may_end()


def real_world(path: Path) -> list[Case]:
    """The cases of a file with one schema per line."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        Case(line["id"], line["schema"], [(each["data"], each["valid"]) for each in line["tests"]])
        for line in lines
    ]


def suite(folder: Path) -> Iterator[Case]:
    """The cases of the test suite, named by keyword and description."""
    for path in sorted(folder.glob("*.json")):
        for group in json.loads(path.read_text()):
            instances = [(test["data"], test["valid"]) for test in group["tests"]]
            yield Case(f"{path.stem}: {group['description']}", group["schema"], instances)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schemas", type=Path, help="schemas of real programs, one per line")
    parser.add_argument("--suite", type=Path, help="folder of the JSON Schema Test Suite")
    parser.add_argument("--library", choices=LIBRARIES, nargs="+", default=["llguidance"])
    parser.add_argument("--details", action="store_true")
    options = parser.parse_args()
    folder = embedded_model()
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    sets = {
        "schemas of real programs": real_world(options.schemas) if options.schemas else [],
        "test suite": list(suite(options.suite)) if options.suite else [],
        "test suite, keywords that are enforced": [
            case
            for case in (suite(options.suite) if options.suite else ())
            if case.name.partition(":")[0] in ENFORCED
        ],
    }
    for name, cases in sets.items():
        if not cases:
            continue
        print(f"\n{name}\n\n{HEAD}")
        for library in options.library:
            result = run(LIBRARIES[library](folder), cases, backend)
            print(result.row(library), flush=True)
            if options.details:
                refused = [f"{count} x refused: {why}" for why, count in result.refusals.items()]
                print("\n".join([*refused, *result.wrong]))


if __name__ == "__main__":
    main()

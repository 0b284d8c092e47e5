"""Replays recorded traffic: turns JSON lines in the Mooncake format into sessions of one request
each.

A line has `timestamp` (milliseconds), `input_length` and `output_length` (tokens) and `hash_ids`:
one for each block of 512 prompt tokens, or of `block_tokens` if a line has that, too. Equal ids
mean equal blocks; every id becomes text, or token ids, that depend only on the id and the seed.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from radixserve.loadtest.prose import prose
from radixserve.loadtest.session import Json, Session, Turn, WorkloadError
from radixserve.loadtest.table import Table

BLOCK_TOKENS = 512
_MOST_MILLISECONDS = 1e15  # thirty thousand years
_MOST_LINE = 1 << 24  # characters
_MOST_TOKENS = 1 << 40  # of a prompt, an answer or a block
FIELDS: dict[str, tuple[type, ...]] = {
    "timestamp": (int, float),
    "input_length": (int,),
    "output_length": (int,),
    "hash_ids": (list,),
}


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a trace."""

    number: int
    seconds: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]
    block_tokens: int = BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class _Scale:
    """How a trace is scaled down, and how its blocks become prompts."""

    seed: int
    length: float
    most_output: int  # tokens
    body: Json
    tokens_per_word: float
    ids: tuple[int, int] | None  # lowest and highest token id; None: text

    def session(self, line: Line, at: float) -> Session:
        name = f"line {line.number}"
        output = min(max(round(line.output_length * self.length), 1), self.most_output)
        body = self.body | {"max_tokens": output}
        lengths = [line.block_tokens] * (len(line.hash_ids) - 1)
        lengths.append(line.input_length - sum(lengths))
        blocks = [
            (block, max(round(length * self.length), 1))
            for block, length in zip(line.hash_ids, lengths, strict=True)
        ]
        turn = self._ids(blocks, body) if self.ids else self._text(blocks, body)
        return Session(name, (), (turn,), at)

    def _ids(self, blocks: list[tuple[int, int]], body: Json) -> Turn:
        low, high = self.ids or (0, 0)
        made = [_ids(self.seed, block, tokens, low, high) for block, tokens in blocks]
        return Turn("ids", "completions", list(itertools.chain(*made)), body)

    def _text(self, blocks: list[tuple[int, int]], body: Json) -> Turn:
        words = [(block, max(round(tokens / self.tokens_per_word), 1)) for block, tokens in blocks]
        return Turn(
            "text", "chat", " ".join(_text(self.seed, block, count) for block, count in words), body
        )


@lru_cache(4096)
def _text(seed: int, block: int, words: int) -> str:
    return prose(words, seed, "block", block)


@lru_cache(4096)
def _ids(seed: int, block: int, tokens: int, low: int, high: int) -> tuple[int, ...]:
    rng = random.Random(f"{seed}/block/{block}")
    return tuple(rng.randint(low, high) for _ in range(tokens))


def replay(table: Table, seed: int) -> list[Session]:
    """The sessions of a slice of a trace, at its own times.

    Raises:
        WorkloadError: a field is wrong, the file does not exist, or a line has another format; the
            message gives its number.
    """
    path = table.folder / table.take("file", str)
    skip, limit, speed = (
        table.count("skip", 0, least=0),
        table.count("requests"),
        table.number("speed", 1.0),
    )
    scale = _scale(table, seed)
    table.end()
    if not speed:
        raise WorkloadError(f"{table.where}: speed must be more than 0")
    lines = list(itertools.islice(read(path), skip, skip + limit))
    if not lines:
        raise WorkloadError(f"{path}: no requests after skipping {skip}")
    for before, line in itertools.pairwise(lines):
        if line.seconds < before.seconds:
            where = f"{path}, line {line.number}"
            raise WorkloadError(f"{where}: the timestamp is before that of the line above")
    return [scale.session(line, (line.seconds - lines[0].seconds) / speed) for line in lines]


def _scale(table: Table, seed: int) -> _Scale:
    blocks = table.take("blocks", str, "text")
    if blocks not in ("text", "ids"):
        raise WorkloadError(f"{table.where}: blocks must be text or ids, not {blocks!r}")
    low, high = table.count("lowest_id", 1000), table.count("highest_id", 30000)
    if low > high:
        raise WorkloadError(f"{table.where}: lowest_id is above highest_id")
    scale = _Scale(
        seed,
        table.number("length_scale", 1.0),
        table.count("most_output", 1 << 20),
        table.take("body", dict),
        table.number("tokens_per_word", 1.0),
        (low, high) if blocks == "ids" else None,
    )
    if not scale.tokens_per_word or not scale.length:
        raise WorkloadError(f"{table.where}: tokens_per_word and length_scale must be more than 0")
    return scale


def read(path: Path) -> Iterator[Line]:
    """The requests of a trace; empty lines are skipped. Raises WorkloadError at the first broken
    line. Times may go back between two, as where a server was started again.
    """
    try:
        with path.open(encoding="utf-8") as file:
            texts = iter(lambda: file.readline(_MOST_LINE + 1), "")
            for number, text in enumerate(texts, start=1):
                where = f"{path}, line {number}"
                if len(text) > _MOST_LINE:
                    raise WorkloadError(f"{where} is longer than {_MOST_LINE:,} characters")
                if text.strip():
                    yield _line(text, number, where)
    except OSError as error:
        raise WorkloadError(f"cannot read the trace {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path} is not text: {error}") from error


def _line(text: str, number: int, where: str) -> Line:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WorkloadError(f"{where} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise WorkloadError(f"{where}: must be an object")
    for name, kind in FIELDS.items():
        if not isinstance(fields.get(name), kind) or isinstance(fields[name], bool):
            raise WorkloadError(
                f"{where}: {name} is missing or of the wrong type: {fields.get(name)!r}"[:300]
            )
    if not fields["timestamp"] <= _MOST_MILLISECONDS:  # NaN, too
        raise WorkloadError(f"{where}: the timestamp is no number of milliseconds")
    if fields["timestamp"] < 0 or fields["input_length"] < 1 or fields["output_length"] < 0:
        raise WorkloadError(f"{where}: a negative time, an empty prompt or a negative length")
    if max(fields["input_length"], fields["output_length"]) > _MOST_TOKENS:
        raise WorkloadError(f"{where}: a length of more than {_MOST_TOKENS:,} tokens")
    if not all(type(block) is int for block in fields["hash_ids"]):
        raise WorkloadError(f"{where}: hash_ids must be whole numbers")
    size = fields.get("block_tokens", BLOCK_TOKENS)
    if type(size) is not int or not 1 <= size <= _MOST_TOKENS:
        raise WorkloadError(f"{where}: block_tokens must be a number of tokens")
    if len(fields["hash_ids"]) != (needed := -(-fields["input_length"] // size)):
        raise WorkloadError(
            f"{where}: {fields['input_length']} tokens need {needed} hash_ids of "
            f"{size} tokens, "
            f"not {len(fields['hash_ids'])}"
        )
    lengths = (fields["input_length"], fields["output_length"])
    return Line(number, fields["timestamp"] / 1000, *lengths, tuple(fields["hash_ids"]), size)

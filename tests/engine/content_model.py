"""A model whose K/V can be read: the content of a slot is the tuple of tokens up to and including its own.

The next token is a function of the whole content, so any wrong, stale or uncomputed slot shows as a wrong answer, and
the model checks every slot that a chunk attends. Nothing about numerics is tested with it, everything about slots is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from radixserve.step import Chunk, Logits

VOCAB = 11


def next_token(prefix: tuple[int, ...]) -> int:
    """Depends on every token and on their order."""
    state = 7
    for token in prefix:
        state = (state * 31 + token + 1) % 1_000_003
    return state % VOCAB


def expected(prompt: list[int], count: int, stop: tuple[int, ...] = ()) -> list[int]:
    """The tokens that a request must get."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tuple(tokens)))
        if tokens[-1] in stop:
            break
    return tokens[len(prompt) :]


class ContentModel:
    """Implements `StepModel`; `poisoned` prefixes get logits that are not finite, `explode` makes forward raise."""

    def __init__(self) -> None:
        self.content: dict[int, tuple[int, ...]] = {}
        self.computed_tokens = 0
        self.poisoned: set[tuple[int, ...]] = set()
        self.explode = False

    def forward(self, chunks: Sequence[Chunk], drawn: torch.Tensor | None = None) -> torch.Tensor:
        if self.explode:
            raise RuntimeError("the device is on fire")
        chunks = [_known(chunk, drawn) for chunk in chunks]
        prefixes = [self._prefix(chunk) for chunk in chunks]  # all reads first: no chunk sees this step's writes
        rows = [row for chunk, prefix in zip(chunks, prefixes, strict=True) for row in self._compute(chunk, prefix)]
        logits = torch.full((len(rows), VOCAB), -5.0)
        for i, prefix in enumerate(rows):
            logits[i, next_token(prefix)] = 5.0
            if prefix in self.poisoned:
                logits[i] = float("nan")
        return logits

    def _prefix(self, chunk: Chunk) -> tuple[int, ...]:
        if chunk.start == 0:
            return ()
        prefix = self.content[int(chunk.slots[chunk.start - 1])]
        assert len(prefix) == chunk.start
        for position in range(chunk.start):
            assert self.content[int(chunk.slots[position])] == prefix[: position + 1], (
                "a slot holds somebody else's K/V"
            )
        return prefix

    def _compute(self, chunk: Chunk, prefix: tuple[int, ...]) -> list[tuple[int, ...]]:
        assert len(set(chunk.slots.tolist())) == len(chunk.slots) == chunk.stop
        rows = []
        for token, slot in zip(chunk.token_ids.tolist(), chunk.slots[chunk.start :].tolist(), strict=True):
            prefix = (*prefix, token)
            self.content[slot] = prefix
            rows.append(prefix)
        self.computed_tokens += len(rows)
        return rows if chunk.logits is Logits.ALL else rows[-1:]


def _known(chunk: Chunk, drawn: torch.Tensor | None) -> Chunk:
    """With the token that only the device knew."""
    if chunk.drawn_row is None:
        return chunk
    assert drawn is not None
    assert chunk.token_ids.tolist() == [0], "its place is kept by a zero"
    return replace(chunk, token_ids=drawn[chunk.drawn_row].reshape(1).numpy())

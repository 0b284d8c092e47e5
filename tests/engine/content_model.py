"""A model whose K/V can be read: the content of a slot is the tuple of tokens up to and including
its own.

The next token is a function of the whole content, so any wrong, stale or uncomputed slot shows as a
wrong answer, and the model checks every slot that a chunk attends. Nothing about numerics is tested
with it, everything about slots is.

A step can be made to fail: then its slots hold nonsense, as they may after a fault of the device,
and whatever is computed from nonsense is nonsense.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from radixserve.step import Chunk

VOCAB = 11
NONSENSE = (-1,)
ON_FIRE = RuntimeError("the device is on fire")

Prefix = tuple[int, ...]
FaultOf = Callable[[list[list[Prefix]]], Exception | None]
"""Of a step's chunks, each as the prefixes it computed, to what the step raises."""


def next_token(prefix: Prefix) -> int:
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
    """Implements `StepModel`; `poisoned` prefixes get logits that are not finite, `fault_of` says
    which steps fail.

    If they are `late` to fail they give nonsense, and what they should raise later is in
    `failed_late`, by call.
    """

    def __init__(self) -> None:
        self.content: dict[int, Prefix] = {}
        self.computed_tokens = 0
        self.num_calls = 0
        self.poisoned: set[Prefix] = set()
        self.fault_of: FaultOf = lambda step: None
        self.late = False
        self.failed_late: dict[int, Exception] = {}
        self.wrong: list[
            str
        ] = []  # kept as well as raised: a second try of the step must not hide it

    def fail_calls(self, *calls: int) -> None:
        """The calls of these indices fail."""
        self.fault_of = lambda step: ON_FIRE if self.num_calls - 1 in calls else None

    def forward(
        self,
        chunks: Sequence[Chunk],
        drawn: torch.Tensor | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        self.num_calls += 1
        chunks = [_known(chunk, drawn) for chunk in chunks]
        prefixes = [
            self._prefix(chunk) for chunk in chunks
        ]  # all reads first: no chunk sees this step's writes
        step = [
            self._compute(chunk, prefix) for chunk, prefix in zip(chunks, prefixes, strict=True)
        ]
        if between_layers is not None:
            self._interrupt(chunks, between_layers)
        error = self.fault_of(step)
        if error is not None:
            step = self._fail(chunks, error)
        return self._logits(
            [
                row
                for chunk, rows in zip(chunks, step, strict=True)
                for row in rows[-chunk.num_logits :]
            ]
        )

    def _interrupt(self, chunks: Sequence[Chunk], between_layers: Callable[[], None]) -> None:
        """While layers are computed the slots hold nonsense."""
        slots = [slot for chunk in chunks for slot in chunk.slots[chunk.start :].tolist()]
        whole = {slot: self.content[slot] for slot in slots}
        self.content.update(dict.fromkeys(slots, NONSENSE))
        between_layers()
        self.content.update(whole)

    def _logits(self, rows: list[Prefix]) -> torch.Tensor:
        logits = torch.full((len(rows), VOCAB), -5.0)
        for i, prefix in enumerate(rows):
            logits[i, next_token(prefix)] = 5.0
            if prefix in self.poisoned or prefix[:1] == NONSENSE:
                logits[i] = float("nan")
        return logits

    def _fail(self, chunks: Sequence[Chunk], error: Exception) -> list[list[Prefix]]:
        for chunk in chunks:
            self.content.update(dict.fromkeys(chunk.slots[chunk.start :].tolist(), NONSENSE))
        if not self.late:
            raise error
        self.failed_late[self.num_calls - 1] = error
        return [[NONSENSE] * len(chunk.token_ids) for chunk in chunks]

    def _prefix(self, chunk: Chunk) -> Prefix:
        before = [self.content.get(slot, ()) for slot in chunk.slots[: chunk.start].tolist()]
        if NONSENSE in before:
            return NONSENSE
        prefix = before[-1] if before else ()
        self._require(len(prefix) == chunk.start, "a slot holds the K/V of another position")
        for position, content in enumerate(before):
            self._require(content == prefix[: position + 1], "a slot holds somebody else's K/V")
        return prefix

    def _compute(self, chunk: Chunk, prefix: Prefix) -> list[Prefix]:
        self._require(
            len(set(chunk.slots.tolist())) == len(chunk.slots) == chunk.stop,
            "slots are not one each",
        )
        rows = []
        for token, slot in zip(
            chunk.token_ids.tolist(), chunk.slots[chunk.start :].tolist(), strict=True
        ):
            prefix = NONSENSE if prefix == NONSENSE else (*prefix, token)
            self.content[slot] = prefix
            rows.append(prefix)
        self.computed_tokens += len(rows)
        return rows

    def _require(self, condition: bool, otherwise: str) -> None:
        if not condition:
            self.wrong.append(otherwise)
            raise AssertionError(otherwise)


def _known(chunk: Chunk, drawn: torch.Tensor | None) -> Chunk:
    """With the token that only the device knew."""
    if chunk.drawn_row is None:
        return chunk
    assert drawn is not None
    assert chunk.token_ids.tolist() == [0], "its place is kept by a zero"
    return replace(chunk, token_ids=drawn[chunk.drawn_row].reshape(1).numpy())

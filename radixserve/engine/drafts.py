"""Speculation: guesses the tokens that a sequence is likely to draw next, without a model.

The guessed tokens (a draft) are computed in the same chunk as the last known token, and every row
of the chunk draws. A draw is keyed by seed and position, and the logits of a row do not depend on
how many rows there are. So the draw behind a right guess is the one that a step of its own would
have made, at any temperature, and the draws count up to the first one that differs from its guess:

    known        the cat
    draft             sat on the mat         guessed
    chunk        cat  sat on the mat         the last known token, then the draft
    draws        sat  on  a  big red         "sat" and "on" were right: the next tokens are
                                             "sat on a"; the last two draws do not count

There are two sources. The radix tree knows what followed the same tokens before, in the namespace
of the request: an answer that is generated again. The sequence itself may have had its last tokens
before: an answer that quotes its prompt, or repeats itself (Saxena 2023, "Prompt lookup decoding").
A source that guesses wrong is asked for less, and rests for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from radixserve.engine.counters import FROM_TEXT, FROM_TREE

Ids = npt.NDArray[np.int32]
AskTree = Callable[[int], Ids]
"""Gives at most so many tokens that followed all tokens of the sequence before."""

_FIRST_WIDTH, _MOST_WIDTH = 4, 15  # tokens of a draft
_MOST_REST = 64  # tokens for which a source rests that was wrong again and again
_FEWEST, _MOST = 3, 8  # of the last tokens: how many must have occurred before, and are looked up
_READ_AHEAD = 256  # tokens that are read from the tree at a time
_NOTHING: Ids = np.zeros(0, np.int32)


@dataclass(slots=True)
class Trust:
    """How many tokens a source may guess at a time.

    The width doubles while all guesses are right, and halves when all are wrong. Then the source
    rests, each time twice as long. So a source that is always wrong costs nine rows in the first
    hundred tokens, and one in 64 from then on.
    """

    width: int = _FIRST_WIDTH
    _failures: int = 0  # in a row
    _rests_until: int = 0  # the sequence has so many tokens

    def most(self, num_tokens: int) -> int:
        """The most tokens to guess for a sequence that has `num_tokens`."""
        return self.width if num_tokens >= self._rests_until else 0

    def judge(self, num_guessed: int, num_right: int, num_tokens: int) -> None:
        """Note how many guesses were right; the sequence has `num_tokens` now."""
        if num_right:
            wider = 2 * self.width if num_right == num_guessed else num_right + 1
            self.width, self._failures = min(wider, _MOST_WIDTH), 0
        else:
            self.width, self._failures = max(1, self.width // 2), self._failures + 1
            self._rests_until = num_tokens + min(2**self._failures, _MOST_REST)


class Source(Protocol):
    """Guesses how a sequence goes on."""

    def guess(self, ids: Ids, most: int) -> Ids:
        """At most `most` tokens that may follow `ids`, all tokens of the sequence."""


class FromTree:
    """What followed the same tokens in the radix tree.

    Tokens are read ahead once and followed as long as the sequence agrees with them. Where it does
    not, the tree is asked again, until it knows nothing: then the sequence is a new one, and stays
    so.
    """

    name = FROM_TREE

    def __init__(self, ask: AskTree) -> None:
        self._ask = ask
        self._read: Ids = _NOTHING  # what followed the first `_start` tokens
        self._start = 0
        self._is_new = False

    def guess(self, ids: Ids, most: int) -> Ids:
        """Costs a look-up of `ids` in the tree when the sequence begins or leaves a branch."""
        if not self._is_new and not self._follows(ids):
            self._read, self._start = self._ask(_READ_AHEAD), len(ids)
            self._is_new = not len(self._read)
        return self._read[len(ids) - self._start :][:most]

    def _follows(self, ids: Ids) -> bool:
        """Whether the sequence has gone on as was read, and more was read."""
        since = ids[self._start :]
        return len(since) < len(self._read) and np.array_equal(since, self._read[: len(since)])


class FromText:
    """What followed the last tokens of the sequence when they occurred in it last."""

    name = FROM_TEXT

    def guess(self, ids: Ids, most: int) -> Ids:
        """Costs some passes over `ids`, in vectorised numpy."""
        end = last_occurrence(ids)
        return ids[end : end + most]


def last_occurrence(ids: Ids) -> int:
    """The end of the last earlier occurrence of the longest possible tail of `ids`, of 3 to 8
    tokens; len(ids) if there is none.
    """
    if len(ids) <= _FEWEST:
        return len(ids)
    ends = np.flatnonzero(ids[_FEWEST - 1 : -1] == ids[-1]) + _FEWEST
    for back in range(2, _MOST + 1):
        longer = ends[(ends >= back) & (ids[ends - back] == ids[-back])]
        if not len(longer):
            return len(ids) if back <= _FEWEST else int(ends[-1])
        ends = longer
    return int(ends[-1])


@dataclass(slots=True)
class Drafting:
    """The drafts of one sequence."""

    sources: tuple[FromTree | FromText, ...]
    _trust: dict[str, Trust] = field(default_factory=dict)  # by source
    source: str = ""  # of the draft proposed last

    def propose(self, ids: Ids, most: int) -> Ids:
        """At most `most` tokens that may follow `ids`, of the first source that knows some."""
        for source in self.sources:
            trust = self._trust.setdefault(source.name, Trust())
            width = min(most, trust.most(len(ids)))
            draft = source.guess(ids, width) if width > 0 else _NOTHING
            if len(draft):
                self.source = source.name
                return draft
        return _NOTHING

    def judge(self, num_guessed: int, num_right: int, num_tokens: int) -> None:
        """Note what came of the draft proposed last; the sequence has `num_tokens` now."""
        self._trust[self.source].judge(num_guessed, num_right, num_tokens)

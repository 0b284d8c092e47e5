"""The grammar of one sequence: which tokens may be drawn next, and which need not be drawn because
nothing else can follow.

Owns how a grammar and a request's stop tokens go together:

- Where the output may end, stop tokens are allowed besides what the grammar allows. Where nothing
  can follow, the request ends without one.
- Elsewhere a stop token is allowed only if it is text that the grammar allows, or if the grammar
  leaves nothing else.
- As long as the output has fewer than `min_tokens`, no stop token is allowed, unless the grammar
  leaves nothing else.

Knows tokens and `Sampling`, no slots and no steps.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from radixserve.grammar import Compiled
from radixserve.grammar.compiled import Words
from radixserve.request import Sampling


class Constraint:
    """Follows the output of one sequence."""

    def __init__(self, compiled: Compiled, sampling: Sampling, output_ids: list[int]) -> None:
        """`output_ids` is the output so far. Cost: some microseconds per token."""
        self._matcher = compiled.matcher()
        self._min_tokens = sampling.min_tokens
        self._stop_ids = frozenset(sampling.stop_token_ids)
        vocabulary = compiled.vocabulary
        self._stops = _words(self._stop_ids, vocabulary.num_words)
        self._control_stops = _words(self._stop_ids & vocabulary.control_ids, vocabulary.num_words)
        if output_ids:
            self._matcher.consume(output_ids)

    @property
    def error(self) -> str | None:
        """Why no token can be drawn: the grammar became too complex on the way. None as long as
        one can.
        """
        return self._matcher.error

    @property
    def is_complete(self) -> bool:
        """Whether the output matches the grammar and nothing can follow."""
        return self._matcher.is_complete

    def advance(self, token_id: int) -> None:
        """Go on behind a drawn token that does not end the request."""
        self._matcher.consume([token_id])

    def take_forced(self, most: int) -> list[int]:
        """At most `most` tokens that must follow, and go on behind them. None of them ends the
        request: such a token is left to be drawn.
        """
        if self._matcher.is_accepting:
            return []
        forced = self._matcher.forced()
        ending = next((i for i, each in enumerate(forced) if each in self._stop_ids), len(forced))
        forced = forced[: min(ending, most)]
        if forced and self._matcher.completes(forced):
            forced.pop()
        self._matcher.consume(forced)
        return forced

    def allowed(self, num_output: int) -> Words:
        """The tokens that may be drawn as output token `num_output`, as in `Row.allowed`; none if
        there is an `error`.
        """
        words = self._matcher.mask()
        if num_output < self._min_tokens:
            return _without(words, self._stops)
        if self._matcher.is_accepting:
            return words | self._stops
        return _without(words, self._control_stops)


def _words(token_ids: Iterable[int], num_words: int) -> Words:
    """A mask of these tokens; those beyond the vocabulary are left out."""
    words = np.zeros(num_words, np.uint32)
    for token_id in token_ids:
        if token_id >> 5 < num_words:
            words[token_id >> 5] |= np.uint32(1 << (token_id & 31))
    return words


def _without(words: Words, others: Words) -> Words:
    """`words` without `others`, if that leaves any."""
    left = words & ~others
    return left if left.any() else words

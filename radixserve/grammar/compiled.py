"""Compiled grammars, and the matcher that follows one output through its grammar.

A mask has one bit per token, in words of 32 bits, lowest first. It depends on the grammar and on
the tokens so far, and on nothing else. Where the grammar leaves only one text, the mask leaves one
token: the one that the tokenizer makes of that text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits

from radixserve.errors import BadRequest
from radixserve.grammar.source import library_source
from radixserve.grammar.vocabulary import Vocabulary, refusal_of
from radixserve.request import Grammar

Words = npt.NDArray[np.uint32]

_LIMITS = LLParserLimits(
    max_lexer_states=50_000,  # about 2 KB each
    max_grammar_size=200_000,  # symbols
    verbose_errors=False,
)
_UNSUPPORTED = ("Unimplemented keys", "Unknown format", "oneOf constraints", "min/maxProperties")
_TOO_COMPLEX = ("too large", "too deep", "fuel", "limit", "too big")


class Compiled:
    """A grammar over a vocabulary, ready for any number of matchers. Any thread may use it."""

    def __init__(self, prototype: LLMatcher, vocabulary: Vocabulary) -> None:
        self._prototype = prototype
        self.vocabulary = vocabulary

    def matcher(self) -> Matcher:
        """A matcher at the beginning of an output. Takes microseconds; matchers share what they
        learn about the grammar.
        """
        return Matcher(self._prototype.deep_copy(), self.vocabulary)


class Matcher:
    """Follows one output, token by token."""

    def __init__(self, library: LLMatcher, vocabulary: Vocabulary) -> None:
        self._library = library
        self._vocabulary = vocabulary

    @property
    def error(self) -> str | None:
        """Why the matcher cannot go on, as the library says it: it was given a token that the
        grammar does not allow, or the grammar became too complex. None as long as it can.
        """
        return self._library.get_error() or None

    @property
    def is_accepting(self) -> bool:
        """Whether the output so far matches the whole grammar."""
        return self._library.is_accepting()

    @property
    def is_complete(self) -> bool:
        """Whether the output so far matches the whole grammar and nothing can follow."""
        return self._library.is_stopped() and not self._library.is_error()

    def consume(self, token_ids: Sequence[int]) -> bool:
        """Go on behind these tokens. False if one of them is not allowed; then `error` says so."""
        return self._library.consume_tokens(list(token_ids))

    def forced(self) -> list[int]:
        """The tokens that must follow, as the tokenizer makes them of the only text that can
        follow. Empty if there is a choice, or one that a longer token leaves open.
        """
        return self._library.compute_ff_tokens()

    def completes(self, token_ids: Sequence[int]) -> bool:
        """Whether the matcher would be complete behind these tokens, which must be allowed."""
        ahead = Matcher(self._library.deep_copy(), self._vocabulary)
        return ahead.consume(token_ids) and ahead.is_complete

    def mask(self) -> Words:
        """The tokens that may follow, uint32 [num_words]; none if there is an `error`. Median 10
        us, and up to milliseconds where the grammar sees a new state.
        """
        words = np.zeros(self._vocabulary.num_words, np.uint32)
        if not self._library.is_error():
            self._library.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        words[self._vocabulary.size >> 5] &= ~np.uint32(1 << (self._vocabulary.size & 31))
        return words


def compile_grammar(grammar: Grammar, vocabulary: Vocabulary) -> Compiled:
    """Compile `grammar`. Takes milliseconds, and seconds for the largest; other threads run.

    Raises:
        BadRequest: the grammar is malformed, too large, or uses what is not supported; one sentence
            names the keyword or the place.
    """
    source = library_source(grammar, vocabulary.token_ids)
    try:
        prototype = LLMatcher(vocabulary.library, source, log_level=0, limits=_LIMITS)
    except BaseException as error:
        raise refusal_of(error, "The grammar is not valid") from error
    if prototype.is_error():
        raise _refusal(prototype.get_error())
    return Compiled(prototype, vocabulary)


def check(grammar: Grammar, vocabulary: Vocabulary) -> None:
    """Compile `grammar` and compute its first mask, because some grammars turn out to be too
    complex only then. Raises BadRequest as `compile_grammar` does.
    """
    matcher = compile_grammar(grammar, vocabulary).matcher()
    allowed = matcher.mask()
    if matcher.error:
        raise _refusal(matcher.error)
    if not (allowed.any() or matcher.is_accepting):
        raise BadRequest("No text matches the grammar.", code="invalid_value")


def _refusal(error: str) -> BadRequest:
    first, *others = error.strip().split("\n")
    cause = next((line for line in others if line.startswith("error: ")), "")
    line = f"{first[:200]} {cause[:200]}".strip()
    if line.startswith(_UNSUPPORTED):
        return BadRequest(
            f"The schema uses what is not supported: {line}", code="unsupported_parameter"
        )
    if any(words in line for words in _TOO_COMPLEX):
        return BadRequest(f"The grammar is too complex: {line}", code="grammar_too_complex")
    return BadRequest(f"The grammar is not valid: {line}", code="invalid_value")

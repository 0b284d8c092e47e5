"""Compiles grammars beside the steps, and keeps the compiled ones.

The front has checked every grammar before it arrives here, within a deadline, so compiling ends
soon. Building the vocabulary takes about half a second, in half of which no other thread runs
Python code, and so no step; hence `prepare`. Knows no sequences.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from radixserve.errors import BadRequest, first_line
from radixserve.grammar import Compiled, Vocabulary, compile_grammar
from radixserve.request import Grammar

T = TypeVar("T")
MAX_KEPT = 32  # compiled grammars
_THREADS = 2  # so that a large grammar does not delay a small one
# Eight times the stack on which the front's check runs: a grammar that passed there does not
# overflow this one.
_STACK_BYTES = 64 * 1024 * 1024


class Grammars:
    """The compiled grammars of one engine, least recently used first. For one thread."""

    def __init__(self, load: Callable[[], Vocabulary]) -> None:
        """`load` builds the vocabulary; it is called on another thread, and once if it succeeds."""
        self._load = load
        self._vocabulary: Vocabulary | None = None
        self._loading = threading.Lock()
        self._kept: OrderedDict[Grammar, Future[Compiled]] = OrderedDict()
        self._threads = ThreadPoolExecutor(_THREADS, "grammars")

    def prepare(self) -> Future[Vocabulary]:
        """Begin to build the vocabulary; without this call the first grammar does. The future
        raises BadRequest if this tokenizer cannot be constrained, as `compile` will.
        """
        return self._begin(self._loaded)

    def compile(self, grammar: Grammar) -> Future[Compiled]:
        """`grammar` compiled, now or soon. The future raises BadRequest if it cannot be compiled.

        Callers keep the future: if more grammars than are kept are wanted at a time, a second call
        would begin again.
        """
        found = self._kept.get(grammar)
        if found is None:
            found = self._kept[grammar] = self._begin(partial(self._compiled, grammar))
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(grammar)
        return found

    def _begin(self, work: Callable[[], T]) -> Future[T]:
        usual = threading.stack_size(_STACK_BYTES)  # of threads that are started from now on
        try:
            return self._threads.submit(work)
        finally:
            threading.stack_size(usual)

    def _compiled(self, grammar: Grammar) -> Compiled:
        return compile_grammar(grammar, self._loaded())

    def _loaded(self) -> Vocabulary:
        with self._loading:
            if self._vocabulary is None:
                self._vocabulary = self._load()
            return self._vocabulary


def grammars_of(folder: str) -> Grammars:
    """Grammars over the tokenizer in the model's folder."""
    return Grammars(partial(_vocabulary_of, folder))


def _vocabulary_of(folder: str) -> Vocabulary:
    from transformers import PreTrainedTokenizerFast

    try:
        loaded = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the libraries below raise bare Exception
        raise BadRequest(f"the tokenizer cannot be loaded: {first_line(error)}") from error
    return Vocabulary(loaded.backend_tokenizer.to_str())

"""Whether a grammar takes a text, token by token, as the engine would see it."""

from __future__ import annotations

import functools
import json
from typing import Any

import tokenizers
from tokenizers import AddedToken

from radixserve.checkpoints.embedded import embedded_model
from radixserve.grammar import Compiled, Vocabulary, compile_grammar
from radixserve.request import Grammar, GrammarKind
from tests.fakes import byte_tokenizer

EXTRA = ("<tool_call>", "</tool_call>", "</think>")


@functools.cache
def byte_vocabulary() -> Vocabulary:
    """Token i is byte i; two control tokens follow."""
    return Vocabulary(byte_tokenizer().tokenizer.to_json())


@functools.cache
def backend(*, extra: bool = True) -> tokenizers.Tokenizer:
    """The embedded model's tokenizer, with the tags of tool calls as tokens or without."""
    loaded = tokenizers.Tokenizer.from_file(str(embedded_model(progress=False) / "tokenizer.json"))
    if extra:
        loaded.add_tokens([AddedToken(name, special=False) for name in EXTRA])
    return loaded


@functools.cache
def vocabulary(*, extra: bool = True) -> Vocabulary:
    return Vocabulary(backend(extra=extra).to_str())


@functools.cache
def compiled(grammar: Grammar, *, extra: bool = True) -> Compiled:
    return compile_grammar(grammar, vocabulary(extra=extra))


def grammar(kind: GrammarKind, source: Any = "", whitespace: str | None = None) -> Grammar:
    """`source` as text, or as a value that becomes JSON."""
    text = source if isinstance(source, str) else json.dumps(source)
    return Grammar(kind=kind, source=text, whitespace=whitespace)


def accepts(wanted: Grammar, text: str, *, extra: bool = True) -> bool:
    """Whether every token of `text` may be drawn in its turn, and the output may end there."""
    matcher = compiled(wanted, extra=extra).matcher()
    ids = backend(extra=extra).encode(text, add_special_tokens=False).ids
    for token_id in ids:
        if not matcher.mask()[token_id >> 5] >> (token_id & 31) & 1:
            return False
        assert matcher.consume([token_id]), matcher.error
    return matcher.is_accepting

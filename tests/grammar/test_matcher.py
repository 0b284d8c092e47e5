"""Masks against brute force: a token may be drawn exactly if the matcher can go on behind it."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.grammar import Compiled, Matcher, compile_grammar
from radixserve.request import Grammar
from tests.grammar.accept import byte_vocabulary, compiled, grammar, vocabulary

SCHEMAS = [
    {"type": "object", "properties": {"a": {"enum": ["x", "yes"]}, "b": {"type": "number"}}},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    {"type": "string", "minLength": 1, "maxLength": 3},
    {"type": "integer", "minimum": 7, "maximum": 1234},
    {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"const": {"k": []}}}},
    {"type": "string", "format": "date"},
]
GRAMMARS = [
    *(grammar("json_schema", schema) for schema in SCHEMAS),
    grammar("json_schema", SCHEMAS[0], whitespace=""),
    grammar("json_object"),
    grammar("regex", "(a|bc)*d?[0-9]{2,3}"),
    grammar("choice", ["one", "once", "two"]),
    grammar("lark", 'start: "a" start "b" | X\nX: /[xy]+/'),
    grammar("lark", 'start: /(?s:.*)/ | "<" <[256]> "x"'),
    grammar("gbnf", 'root ::= "(" root ")" | [a-c]+'),
]


def ids_in(words: npt.NDArray[np.uint32]) -> set[int]:
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


@functools.cache
def over_bytes(wanted: Grammar) -> Compiled:
    return compile_grammar(wanted, byte_vocabulary())


def goes_on(matcher: Matcher, token_id: int) -> bool:
    """Tried, and taken back."""
    return matcher._library.validate_tokens([token_id]) == 1


def after(wanted: Compiled, token_ids: list[int]) -> Matcher:
    matcher = wanted.matcher()
    assert matcher.consume(token_ids)
    return matcher


@given(wanted=st.sampled_from(GRAMMARS), choices=st.lists(st.integers(0, 999), max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_mask_has_the_tokens_behind_which_the_matcher_can_go_on(
    wanted: Grammar, choices: list[int]
) -> None:
    matcher = over_bytes(wanted).matcher()
    for choice in [*choices, 0]:
        allowed = ids_in(matcher.mask())
        assert allowed == {i for i in range(byte_vocabulary().size) if goes_on(matcher, i)}
        if matcher.is_complete:
            assert not allowed
            assert matcher.is_accepting
            break
        assert allowed, "a way on, or the end"
        assert matcher.consume([sorted(allowed)[choice % len(allowed)]])


@given(wanted=st.sampled_from(GRAMMARS), choices=st.lists(st.integers(0, 999), max_size=12))
@settings(max_examples=60, deadline=None)
def test_forced_tokens_are_those_that_masks_leave(wanted: Grammar, choices: list[int]) -> None:
    matcher = over_bytes(wanted).matcher()
    for choice in choices:
        for token_id in matcher.forced():
            assert ids_in(matcher.mask()) == {token_id}
            assert not matcher.is_accepting
            assert matcher.consume([token_id])
        allowed = sorted(ids_in(matcher.mask()))
        if not allowed:
            assert matcher.is_complete
            break
        assert matcher.consume([allowed[choice % len(allowed)]])


@given(wanted=st.sampled_from(GRAMMARS), choices=st.lists(st.integers(0, 999), max_size=12))
@settings(max_examples=20, deadline=None)
def test_a_mask_depends_on_the_tokens_only(wanted: Grammar, choices: list[int]) -> None:
    """Not on which matchers went before, and not on when the tokens were given."""
    one_by_one, so_far = compiled(wanted).matcher(), list[int]()
    for choice in choices:
        if not (allowed := sorted(ids_in(one_by_one.mask()))):
            break
        so_far.append(allowed[choice % len(allowed)])
        assert one_by_one.consume(so_far[-1:])
    fresh = compile_grammar(wanted, vocabulary())
    for other in (after(compiled(wanted), so_far), after(fresh, so_far)):
        assert np.array_equal(other.mask(), one_by_one.mask())
        assert other.forced() == one_by_one.forced()
        assert other.is_accepting == one_by_one.is_accepting


def test_a_matcher_that_gets_a_forbidden_token_says_so() -> None:
    matcher = compile_grammar(grammar("choice", ["a"]), byte_vocabulary()).matcher()
    assert not matcher.consume([ord("b")])
    assert matcher.error
    assert not matcher.is_complete
    assert not matcher.mask().any()


def test_whether_tokens_complete_is_told_without_going_on() -> None:
    matcher = compile_grammar(grammar("choice", ["ab"]), byte_vocabulary()).matcher()
    assert matcher.forced() == [*b"ab"]
    assert matcher.completes([*b"ab"])
    assert not matcher.completes([*b"a"])
    assert matcher.consume([*b"ab"])

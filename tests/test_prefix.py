"""Prefixes with public tokens, against what each token says of its namespace."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.prefix import PUBLIC, Branch, Prefix, pack

TOKENS = st.lists(st.sampled_from([0, 0, 0, 1]), min_size=1, max_size=5)
NAMESPACES = st.sampled_from([PUBLIC, "a/0", "b/0"])


@st.composite
def prefixes(draw: st.DrawFn) -> Prefix:
    """Only what is not public itself may continue public tokens."""
    namespace = draw(NAMESPACES)
    num_public = 0 if namespace == PUBLIC else draw(st.integers(0, 6))
    return Prefix.of(namespace, draw(TOKENS), num_public)


PREFIXES = prefixes()


def keys_of(prefix: Prefix) -> list[tuple[str, bytes]]:
    """What the K/V of each token belongs to."""
    ends = range(1, prefix.num_tokens + 1)
    return [(prefix.namespace_at(end - 1), prefix.first(end).tokens) for end in ends]


@given(PREFIXES, st.integers(0, 6))
def test_the_first_tokens_keep_their_namespaces(prefix: Prefix, num_tokens: int) -> None:
    assert keys_of(prefix.first(num_tokens)) == keys_of(prefix)[:num_tokens]


@given(PREFIXES, PREFIXES)
def test_a_prefix_begins_with_what_has_the_same_keys(one: Prefix, other: Prefix) -> None:
    theirs = keys_of(other)
    assert one.begins_with(other) == (keys_of(one)[: len(theirs)] == theirs)


@given(PREFIXES, PREFIXES, st.integers(0, 6))
def test_two_prefixes_share_more_tokens_than_a_number(
    one: Prefix, other: Prefix, num_tokens: int
) -> None:
    mine, theirs = (keys_of(each)[: num_tokens + 1] for each in (one, other))
    assert one.shares_more(other, num_tokens) == (mine == theirs and len(mine) > num_tokens)


@settings(max_examples=500)
@given(PREFIXES, NAMESPACES, st.just([]) | TOKENS)
def test_a_branch_covers_what_has_a_token_in_it(
    prefix: Prefix, namespace: str, tokens: list[int]
) -> None:
    branch = Branch(frozenset([namespace]), pack(tokens))
    in_it = [key for where, key in keys_of(prefix) if where == namespace]
    assert branch.covers(prefix) == any(key.startswith(branch.tokens) for key in in_it)

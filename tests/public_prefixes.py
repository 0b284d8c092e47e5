"""Public prefixes of few tokens, which begin alike, for random walks."""

from __future__ import annotations

from collections.abc import Sequence

from radixserve.prefix import Prefix

PUBLIC_PREFIXES = ([0, 1], [0, 1, 2, 0, 0], [2])


def public_part(namespace: str, tokens: Sequence[int]) -> int:
    """How many tokens of a prompt are public; only tenants have namespaces with a slash."""
    found = [len(each) for each in PUBLIC_PREFIXES if list(tokens[: len(each)]) == each]
    return max(found, default=0) if "/" in namespace else 0


def prefix_of(namespace: str, tokens: Sequence[int]) -> Prefix:
    """The prefix of a whole prompt."""
    return Prefix.of(namespace, tokens, public_part(namespace, tokens))

"""The first tokens of a sequence, in a namespace: what K/V belongs to, and by what it is found.

Two prefixes share K/V where both begin with the same tokens and have the same namespace. A prefix
may begin with tokens that the operator shares among all tenants (`public_prefix`):

    position      0 ........ num_public ........ num_tokens
    namespace     "public"  |  its own

Cache, tiers and store are asked by a `Prefix`. Only they look at its fields.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Final, NamedTuple

TOKEN_BYTES = 4

PUBLIC: Final = "public"
"""The namespace of tokens that are shared among all tenants; on a server without tenants that of
every request without a salt.
"""


def pack(token_ids: Iterable[int]) -> bytes:
    """Token ids as packed native int32, the form in which they are compared (one memcmp for many
    tokens).

    Raises:
        OverflowError: an id does not fit.
    """
    return array("i", token_ids).tobytes()


def unpack(tokens: bytes, most: int | None = None) -> list[int]:
    """The token ids of packed `tokens`; with `most` the first ones only."""
    return memoryview(tokens)[: None if most is None else most * TOKEN_BYTES].cast("i").tolist()


def owner_of(namespace: str) -> str:
    """The tenant that a namespace belongs to: what stands before its slash; empty without one."""
    return namespace.rpartition("/")[0]


class Prefix(NamedTuple):
    """Tokens from position 0 on, in a namespace. `tokens` are packed (`pack`). The first
    `num_public` of them, or all if there are fewer, are in the namespace `PUBLIC` instead.
    """

    namespace: str
    tokens: bytes
    num_public: int = 0

    @classmethod
    def of(cls, namespace: str, token_ids: Iterable[int], num_public: int = 0) -> Prefix:
        """The prefix of these token ids."""
        return cls(namespace, pack(token_ids), num_public)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) // TOKEN_BYTES

    def parts(self) -> list[tuple[str, int]]:
        """The namespaces of its tokens in the order of positions, each with the position where it
        ends: one, or two if it begins with public tokens and has more.
        """
        num_tokens, num_public = self.num_tokens, self.num_public
        if not num_public:
            return [(self.namespace, num_tokens)]
        if num_tokens <= num_public:
            return [(PUBLIC, num_tokens)]
        return [(PUBLIC, num_public), (self.namespace, num_tokens)]

    def namespace_at(self, position: int) -> str:
        """The namespace of the token at `position`."""
        return PUBLIC if position < self.num_public else self.namespace

    def first(self, num_tokens: int) -> Prefix:
        """The prefix of the first `num_tokens` tokens, or of all if there are fewer. If all of them
        are public, its namespace is `PUBLIC`.
        """
        tokens = self.tokens[: num_tokens * TOKEN_BYTES]
        if 0 < self.num_public * TOKEN_BYTES >= len(tokens):
            return Prefix(PUBLIC, tokens)
        return Prefix(self.namespace, tokens, self.num_public)

    def begins_with(self, other: Prefix) -> bool:
        """Whether it has the K/V of `other`: the same tokens in the same namespaces."""
        # Of prefixes that begin alike, the last token is the first to differ.
        last = max(0, other.num_tokens - 1) * TOKEN_BYTES
        ends_alike = self.tokens.startswith(other.tokens[last:], last)
        if not (ends_alike and self.tokens.startswith(other.tokens)):
            return False
        return self.first(other.num_tokens).parts() == other.parts()

    def shares_more(self, other: Prefix, num_tokens: int) -> bool:
        """Whether both begin with the same K/V of more than `num_tokens` tokens."""
        start = num_tokens * TOKEN_BYTES
        token = other.tokens[start : start + TOKEN_BYTES]
        if not token or not self.tokens.startswith(token, start):
            return False  # without copying what both may begin with
        return self.begins_with(other.first(num_tokens + 1))

    def behind(self, num_tokens: int) -> bytes:
        """The tokens behind the first `num_tokens`, packed."""
        return self.tokens[num_tokens * TOKEN_BYTES :]


class Branch(NamedTuple):
    """Every prefix of some namespaces (None: of all) that begins with `tokens`, which are
    packed. With `tenant` only those of namespaces that begin with its name and a slash.
    """

    namespaces: frozenset[str] | None
    tokens: bytes = b""
    tenant: str | None = None

    def covers(self, prefix: Prefix) -> bool:
        """Whether `prefix` is one of these, or has a public part that is."""
        if not prefix.tokens.startswith(self.tokens):
            return False
        least = len(self.tokens) // TOKEN_BYTES
        return any(self.has(namespace) for namespace, end in prefix.parts() if end >= least)

    def has(self, namespace: str) -> bool:
        """Whether it is about prefixes of `namespace`."""
        if self.tenant is not None and not namespace.startswith(f"{self.tenant}/"):
            return False
        return self.namespaces is None or namespace in self.namespaces

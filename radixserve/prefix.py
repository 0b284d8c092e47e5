"""The first tokens of a sequence, in a namespace: what K/V belongs to, and by what it is found.

Two prefixes share K/V where both begin with the same tokens and have the same namespace. Cache,
tiers and store are asked by a `Prefix`. Only they look at its two fields.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import NamedTuple

TOKEN_BYTES = 4


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
    """Tokens from position 0 on, in a namespace. `tokens` are packed (`pack`)."""

    namespace: str
    tokens: bytes

    @classmethod
    def of(cls, namespace: str, token_ids: Iterable[int]) -> Prefix:
        """The prefix of these token ids."""
        return cls(namespace, pack(token_ids))

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) // TOKEN_BYTES

    def first(self, num_tokens: int) -> Prefix:
        """The prefix of the first `num_tokens` tokens, or of all if there are fewer."""
        return Prefix(self.namespace, self.tokens[: num_tokens * TOKEN_BYTES])

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
        """Whether `prefix` is one of these."""
        return self.has(prefix.namespace) and prefix.tokens.startswith(self.tokens)

    def has(self, namespace: str) -> bool:
        """Whether it is about prefixes of `namespace`."""
        if self.tenant is not None and not namespace.startswith(f"{self.tenant}/"):
            return False
        return self.namespaces is None or namespace in self.namespaces

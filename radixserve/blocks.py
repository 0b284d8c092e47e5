"""Changes of what a cache holds, in whole blocks of tokens: what the engine tells the front, and
the front tells routers that choose among several servers (`front.kv_events`).

A block is `block_tokens` tokens, from a multiple of that on, and stands for all tokens before it,
too: its hash is made of its tokens, its namespace and the hash of the block before it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec

DEVICE: Final = "GPU"
"""The medium of K/V that steps can read, whatever the device is; routers know this word."""

HOST: Final = "CPU"
"""The medium of K/V that has to be copied to the device first."""

_HASH_BYTES = 8
_MOST = (1 << 63) - 1  # fits a signed and an unsigned integer of 64 bits


class BlocksStored(msgspec.Struct, tag="stored"):
    """Blocks that can be found now. They follow each other, and the first one follows `parent`."""

    hashes: list[int]
    parent: int | None  # None: the first block begins at position 0
    tokens: bytes  # of all of them, packed (`prefix.pack`)
    namespace: str
    medium: str


class BlocksRemoved(msgspec.Struct, tag="removed"):
    """Blocks that cannot be found any more."""

    hashes: list[int]
    medium: str


class BlockChanges(msgspec.Struct, tag="block_changes", frozen=True):
    """Changes in the order in which they happened."""

    changes: list[BlocksStored | BlocksRemoved]


def block_hash(parent: int | None, namespace: str, tokens: bytes) -> int:
    """The hash of a block, between 0 and 2**63 - 1; about a microsecond."""
    before = b"" if parent is None else parent.to_bytes(_HASH_BYTES, "little")
    digest = blake2b(tokens, digest_size=_HASH_BYTES, key=before)
    digest.update(namespace.encode())
    return int.from_bytes(digest.digest(), "little") & _MOST

"""The rows of the index, and a check that finds inconsistent ones. Knows no SQL and no files."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from radixserve.prefix import PUBLIC, TOKEN_BYTES, Prefix


class Corrupt(sqlite3.DatabaseError):
    """The index is damaged, although SQLite reported no error."""


class Row(NamedTuple):
    """One stored run."""

    id: int
    parent: int
    start: int
    first_token: int
    length: int
    fingerprint: str
    namespace: str
    name: str
    num_bytes: int
    digest: str
    created: float
    used: float
    last_use: int
    hits: int
    tokens: bytes

    def prefix_behind(self, prefix: Prefix) -> Prefix:
        """The prefix that ends with this run, if `prefix` begins with the tokens before it."""
        tokens = prefix.first(self.start).tokens + self.tokens
        if self.start < prefix.num_public:  # the whole run is public, however far `prefix` is
            return Prefix(PUBLIC, tokens)
        return prefix._replace(tokens=tokens)


def prefix_of(path: Sequence[Row]) -> Prefix:
    """The whole prefix up to the end of the last of these runs, each of which continues the one
    before.
    """
    namespace = path[-1].namespace
    num_public = next(row.start for row in path if row.namespace == namespace)
    prefix = Prefix(namespace, b"", num_public)
    for row in path:
        prefix = prefix._replace(tokens=row.prefix_behind(prefix).tokens)
    return prefix


class Outline(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A stored run without its tokens and its file. A walk holds one for each run, so the garbage
    collector does not track them: a hundred thousand more would have it examine all objects.
    """

    id: int
    parent: int
    start: int
    length: int
    namespace: str
    used: float
    hits: int


class NewRun(NamedTuple):
    """The values of a run that is to be inserted."""

    parent: int
    start: int
    fingerprint: str
    namespace: str
    name: str
    num_bytes: int
    digest: str
    tokens: bytes  # of the run alone


class Step(NamedTuple):
    """A run on a path through the tree, and how many of its tokens match."""

    row: Row
    shared: int


def shared(
    row: Row, where: tuple[int, int, int, str, str], ids: np.ndarray[Any, np.dtype[np.int32]]
) -> int:
    """How many of a run's tokens match `ids` from the run's start on; at least one, because the
    query compared the first.

    The query's conditions are checked again, because SQLite searches one B-tree and reads the row
    from another, and neither has checksums.

    Raises:
        Corrupt: the row does not match the query that found it.
    """
    found_by = (row.parent, row.start, row.first_token, row.fingerprint, row.namespace)
    if found_by != where or not row.length or len(row.tokens) != row.length * TOKEN_BYTES:
        raise Corrupt(f"the row of run {row.id} contradicts itself")
    theirs = np.frombuffer(row.tokens, np.int32)
    count = min(len(theirs), len(ids) - row.start)
    differ = np.flatnonzero(theirs[:count] != ids[row.start : row.start + count])
    count = int(differ[0]) if len(differ) else count
    if not count:
        raise Corrupt(f"the tokens of run {row.id} are not those it was found by")
    return count

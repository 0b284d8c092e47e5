"""The index: a radix tree of stored runs in one SQLite table. It says which prefixes are stored,
and in which files.

It knows rows and token ids, and files only by name. Runs are never split: where two sequences
diverge inside a stored run, the rest of the second one becomes its child at that position. After
"the cat sat down" and "the cat ran" (a word stands for a token):

    id 1   parent 0   start 0   the cat sat down
    id 2   parent 1   start 2   ran                  so positions 0 and 1 come from run 1, cut short

A run is in one namespace. What follows public tokens is a child of their run, from where they end.

A run is found by (parent run, position, first token, fingerprint, namespace), and then its token
ids are compared. A parent is a row and not a digest, so two prefixes are never confused, even if
digests collide.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from radixserve.prefix import Prefix
from radixserve.store.folder.claim import APPLICATION
from radixserve.store.folder.disk import Disk
from radixserve.store.format.rows import Corrupt, NewRun, Outline, Row, Step, prefix_of, shared

T = TypeVar("T")

SCHEMA = 1
ROOT = 0
_LATEST = 1 << 62  # larger than any count of uses

_TABLE = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused, so a parent's id stays its own
    parent INTEGER NOT NULL,               -- the run with the position before `start`; 0: none
    start INTEGER NOT NULL,
    first_token INTEGER NOT NULL,
    fingerprint TEXT NOT NULL,
    namespace TEXT NOT NULL,
    length INTEGER NOT NULL,
    name TEXT NOT NULL UNIQUE,
    bytes INTEGER NOT NULL,
    digest TEXT NOT NULL,
    created REAL NOT NULL,                 -- wall clock, to show
    used REAL NOT NULL,                    -- wall clock, to show
    last_use INTEGER NOT NULL,             -- a counter, to evict by
    hits INTEGER NOT NULL,
    tokens BLOB NOT NULL,                  -- last, so that other columns are read without it
    UNIQUE (parent, start, first_token, fingerprint, namespace)
) STRICT"""
_GIVEN = (
    "parent, start, first_token, length, fingerprint, namespace, name, bytes, digest,"
    " created, used, last_use, hits, tokens"
)
_COLUMNS = f"id, {_GIVEN}"
_SETUP = (
    "PRAGMA journal_mode = WAL",
    # power loss may lose the last rows (a miss), but never damages the index
    "PRAGMA synchronous = NORMAL",
    "PRAGMA wal_autocheckpoint = 64",
    "PRAGMA journal_size_limit = 1048576",
)

# SQLite's errors for a damaged file. Some say that a statement is invalid, that the file is
# read-only, or that a row violates a constraint which no row of ours can violate.
_CORRUPT = (
    *(sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR),
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH),
)


class Unusable(Exception):
    """This version cannot read the index; it can be replaced without losing runs."""


class Newer(Exception):
    """The index was written by a later version."""


class Index:
    """The table of runs. One thread at a time; all methods raise sqlite3.Error. An index that is
    forgotten is closed.
    """

    def __init__(self, disk: Disk, path: Path, *, read_only: bool = False) -> None:
        """Open or create.

        Raises:
            Unusable, Newer: the file is not ours, is too old, or was written by a later version.
            sqlite3.Error: it is corrupt (`is_corrupt`), locked, or cannot be opened.
            OSError: its path is not safe (`Disk.connect`).
        """
        self.disk = disk
        self._connection = disk.connect(path, read_only=read_only)
        self._closing = weakref.finalize(self, self._connection.close)
        try:
            self._open(read_only)
            self._clock: int = self._one("SELECT coalesce(max(last_use), 0) FROM runs")
            if not 0 <= self._clock < _LATEST:
                raise Unusable("the index counts uses beyond reason")
        except BaseException:
            self.close()
            raise

    def _open(self, read_only: bool) -> None:
        version, application = self._one("PRAGMA user_version"), self._one("PRAGMA application_id")
        if not version and not application and not self._one("SELECT count(*) FROM sqlite_master"):
            if read_only:
                raise Unusable("the index is empty")
            self._create()
        elif application != APPLICATION or version < SCHEMA:
            raise Unusable(f"the index has schema {version} of application {application:#x}")
        elif version > SCHEMA:
            raise Newer(f"the index has schema {version}; this version knows {SCHEMA}")
        for statement in () if read_only else _SETUP:
            self._sql(statement)
        self._sql(f"SELECT {_COLUMNS} FROM runs LIMIT 1")

    def _create(self) -> None:
        with self.transaction():
            self._sql(_TABLE)
            self._sql(
                "CREATE INDEX by_use ON runs (last_use, bytes)"
            )  # for eviction, and covers the sum of bytes
            self._sql(f"PRAGMA application_id = {APPLICATION}")
            self._sql(f"PRAGMA user_version = {SCHEMA}")

    def close(self) -> None:
        self._closing()

    # The tree.

    def walk(self, fingerprint: str, prefix: Prefix) -> list[Step]:
        """The runs that together hold the longest stored part of `prefix`. One query per run.

        Raises:
            Corrupt: a row on the path is inconsistent.
        """
        steps: list[Step] = []
        parent, depth, ids = ROOT, 0, np.frombuffer(prefix.tokens, np.int32)
        for namespace, stop in prefix.parts():
            while depth < stop:
                where = (parent, depth, int(ids[depth]), fingerprint, namespace)
                found = self._rows(
                    "WHERE parent = ? AND start = ? AND first_token = ? AND fingerprint = ? AND "
                    "namespace = ?",
                    where,
                )
                if not found:
                    return steps
                steps.append(Step(found[0], shared(found[0], where, ids[:stop])))
                parent, depth = found[0].id, depth + steps[-1].shared
        return steps

    def runs_of(self, prefixes: Iterable[tuple[str, Prefix]], most_bytes: int) -> dict[str, int]:
        """The runs with K/V of these prefixes, each under its fingerprint: bytes by name. Of as
        many as fit into `most_bytes` together, the first ones before others. One query per run.
        """
        found: dict[str, int] = {}
        left = most_bytes
        for fingerprint, prefix in prefixes:
            rows = [step.row for step in self.walk(fingerprint, prefix)]
            new = {row.name: row.num_bytes for row in rows if row.name not in found}
            if sum(new.values()) <= left:
                found |= new
                left -= sum(new.values())
        return found

    def insert(self, run: NewRun) -> int:
        """Add a run as the most recently used one; returns its id."""
        self._clock += 1
        now, ids = time.time(), np.frombuffer(run.tokens, np.int32)
        place = (run.parent, run.start, int(ids[0]), len(ids), run.fingerprint, run.namespace)
        values = (*place, run.name, run.num_bytes, run.digest, now, now, self._clock, 0, run.tokens)
        places = ", ".join("?" * len(values))
        return int(
            self._sql(f"INSERT INTO runs ({_GIVEN}) VALUES ({places}) RETURNING id", values)[0][0]
        )

    def touch(self, ids: Sequence[int]) -> None:
        """Mark runs as used now."""
        self._clock += 1
        places = ", ".join("?" * len(ids))
        statement = (
            f"UPDATE runs SET last_use = ?, used = ?, hits = hits + 1 WHERE id IN ({places})"
        )
        self._sql(statement, (self._clock, time.time(), *ids))

    def delete(self, ids: Iterable[int]) -> None:
        """Delete the rows of runs. The caller ensures that they have no children."""
        for each in ids:
            self._sql("DELETE FROM runs WHERE id = ?", (each,))

    def below(self, row_id: int) -> list[Row]:
        """A run and all of its descendants, the deepest last."""
        return self._under("id = ?", (row_id,))

    def _under(self, condition: str, values: Sequence[Any]) -> list[Row]:
        """The runs with this condition and all of their descendants, parents before children."""
        statement = f"""WHERE id IN (WITH RECURSIVE under(id) AS
            (SELECT id FROM runs WHERE {condition} UNION
            SELECT runs.id FROM runs JOIN under ON runs.parent = under.id)
            SELECT id FROM under) ORDER BY start, id"""
        return self._rows(statement, values)

    def path(self, row: Row) -> list[Row]:
        """The runs from the root down to `row`."""
        rows = [row]
        while found := self._rows("WHERE id = ? AND id < ?", (rows[-1].parent, rows[-1].id)):
            rows += found
        return rows[::-1]

    def coldest_leaf(self, keep: int, pinned: Iterable[str] = ()) -> Row | None:
        """The least recently used run without children; not `keep`, and none with a name among
        `pinned`.
        """
        found = self._rows(
            "AS leaf WHERE id != ? AND NOT EXISTS (SELECT 1 FROM runs WHERE parent = leaf.id)"
            " AND name NOT IN (SELECT value FROM json_each(?))"
            " ORDER BY last_use, id DESC LIMIT 1",
            (keep, msgspec.json.encode(list(pinned)).decode()),
        )
        return found[0] if found else None

    # The whole.

    def rows(self) -> list[Row]:
        """Every run, parents before children."""
        return self._rows("ORDER BY start, id")

    def namespaces(self, fingerprint: str) -> list[str]:
        """The namespaces of the runs with this fingerprint."""
        statement = "SELECT DISTINCT namespace FROM runs WHERE fingerprint = ?"
        return [str(name) for (name,) in self._sql(statement, (fingerprint,))]

    def of(self, fingerprint: str, namespace: str) -> list[Row]:
        """Every run of a namespace and all that continue it, parents before children."""
        return self._under("fingerprint = ? AND namespace = ?", (fingerprint, namespace))

    def borders(self, fingerprint: str, namespace: str) -> list[int]:
        """The positions at which the namespace continues public tokens."""
        statement = """SELECT DISTINCT run.start FROM runs AS run JOIN runs AS above
            ON run.parent = above.id WHERE run.fingerprint = ? AND run.namespace = ?
            AND above.namespace != run.namespace"""
        return [int(start) for (start,) in self._sql(statement, (fingerprint, namespace))]

    def unused(self, fingerprint: str, namespace: str, seconds: float) -> list[Row]:
        """The runs of a namespace that were not used for so long, and all that continue them, by
        the wall clock: where it was set forward, more than these.
        """
        condition = "fingerprint = ? AND namespace = ? AND used < ?"
        return self._under(condition, (fingerprint, namespace, time.time() - seconds))

    def outlines(self, fingerprint: str, after: int, most: int) -> list[Outline]:
        """The next `most` runs with this fingerprint behind the id `after`, by id: parents before
        children.
        """
        columns = ", ".join(Outline.__struct_fields__)
        statement = (
            f"SELECT {columns} FROM runs WHERE id > ? AND fingerprint = ? ORDER BY id LIMIT ?"
        )
        return _converted(self._sql(statement, (after, fingerprint, most)), Outline)

    def tokens_of(self, ids: Sequence[int]) -> dict[int, bytes]:
        """The packed tokens of runs, by id; those that are gone are left out."""
        places = ", ".join("?" * len(ids))
        return {row.id: row.tokens for row in self._rows(f"WHERE id IN ({places})", tuple(ids))}

    def before(self, row_id: int) -> Prefix | None:
        """The tokens before a run; None if it is gone."""
        found = self._rows("WHERE id = ?", (row_id,))
        if not found:
            return None
        above = self.path(found[0])[:-1]
        return prefix_of(above).first(found[0].start) if above else Prefix(found[0].namespace, b"")

    def files(self) -> list[tuple[int, str, int]]:
        """Id, file name and bytes of every run."""
        return self._sql("SELECT id, name, bytes FROM runs")

    def named(self, prefix: str) -> list[Row]:
        """Runs whose file name begins with `prefix`."""
        return self._rows("WHERE substr(name, 1, ?) = ?", (len(prefix), prefix))

    def num_runs(self) -> int:
        return int(self._one("SELECT count(*) FROM runs"))

    def num_bytes(self) -> int:
        """Bytes of all files. Computed by a query each time, because a stored total could become
        wrong.
        """
        return int(self._one("SELECT coalesce(sum(bytes), 0) FROM runs"))

    def trim(self) -> None:
        """Move the log into the index and empty it, as far as readers allow."""
        self._sql("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements inside the block are applied, or none."""
        self._sql("BEGIN IMMEDIATE")
        try:
            yield
            self._sql("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.rollback()
            raise

    def _sql(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self.disk.execute(self._connection, statement, values)

    def _rows(self, rest: str, values: Sequence[Any] = ()) -> list[Row]:
        return _converted(self._sql(f"SELECT {_COLUMNS} FROM runs {rest}", values), Row)

    def _one(self, statement: str) -> Any:
        return self._sql(statement)[0][0]


def _converted(found: list[Any], row_type: type[T]) -> list[T]:
    """Raises Corrupt for a row with other types, because STRICT checks only what is inserted."""
    try:
        return msgspec.convert(found, list[row_type])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise Corrupt(f"a row cannot be true: {error}") from error


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether the file itself is damaged, as opposed to locked or unreachable."""
    if isinstance(error, Corrupt):
        return True
    code = getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_OK
    return code & 0xFF in _CORRUPT

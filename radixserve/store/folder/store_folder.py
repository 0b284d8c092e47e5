"""The folder of a store, held by one process: its lock, index, files and budget.

Owns the order of operations: a run is added file first, row last, and removed row first, file last.
So whenever a process dies, every row has its complete file, and files without a row are removed at
the next start. Only files with our names are counted and removed (`store.format.layout`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from radixserve.errors import StartupError
from radixserve.store.folder.claim import claim
from radixserve.store.folder.disk import Disk, temporary
from radixserve.store.folder.index import ROOT, Index, Newer, Unusable, is_corrupt
from radixserve.store.folder.lock import attend, take
from radixserve.store.folder.pin_file import read_pins
from radixserve.store.folder.rebuild import rebuild
from radixserve.store.format.layout import (
    BESIDE_INDEX,
    BROKEN,
    INDEX,
    RUNS,
    is_file_of_store,
    is_leftover,
    is_run,
)
from radixserve.store.format.rows import NewRun, Row

_INDEX_RESERVE = (
    512 << 10
)  # allowed growth of the index and its log until room is made again, besides a run's tokens

log = logging.getLogger(__name__)


class StoreFolder:
    """An open, locked folder. One thread at a time; methods raise OSError and sqlite3.Error."""

    def __init__(self, path: Path, budget: int, disk: Disk, *, trust_others: bool = False) -> None:
        """Open or create the folder, remove what a dead process left, and evict down to `budget`
        bytes, what is pinned last.

        Raises:
            StartupError: the folder is not empty and not a store, another process holds it, other
                users can write to it and are not trusted, a later version wrote it, or it cannot be
                used. The message names the folder.
        """
        self.path, self.budget, self.disk = path, budget, disk
        self.runs = path / RUNS
        self.evicted_runs = 0
        self.pinned: dict[str, int] = {}  # bytes of the runs that are not evicted, by name
        self._left: dict[Path, int] = {}  # files that could not be removed, and their bytes
        with _refusing(path):
            try:
                claim(disk, path, trust_others=trust_others)
                self._lock = take(disk, path)
            except BaseException:
                disk.release()
                raise
            try:
                self.index = self._open_index()
                self._tidy()
                self._settle()
            except BaseException:
                self._abandon()
                raise

    def file(self, name: str) -> Path:
        """The path of the run with that name, always inside the folder, even if the index is
        damaged.
        """
        return self.runs / Path(name).name

    def attend(self) -> None:
        """Announce that this process answers requests while it holds the folder."""
        attend(self._lock)

    def close(self) -> None:
        """Close the index and release the lock."""
        self.index.close()
        os.close(self._lock)
        self.disk.release()

    def _abandon(self) -> None:
        if hasattr(self, "index"):
            self.index.close()
        os.close(self._lock)
        self.disk.release()

    # Opening.

    def _tidy(self) -> None:
        """Remove files that dead processes left, except runs."""
        for name, size in self.disk.sizes(self.path).items():
            if is_leftover(name):
                self._unlink(self.path / name, size)

    def _open_index(self) -> Index:
        path = self.path / INDEX
        try:
            return Index(self.disk, path) if self.disk.exists(path) else self._anew("there is none")
        except Newer as error:
            raise StartupError(
                f"the store in {self.path} is of a later version: {error}"
            ) from error
        except Unusable as error:
            return self._anew(str(error))
        except sqlite3.Error as error:
            if not is_corrupt(error):
                raise
            return self._anew(str(error))

    def _anew(self, reason: str) -> Index:
        """Move the index aside and build a new one from the files' headers."""
        path = self.path / INDEX
        with contextlib.suppress(FileNotFoundError):
            self.disk.rename(path, self.path / BROKEN)
        for name in BESIDE_INDEX:
            self.disk.unlink(self.path / name)
        index = Index(self.disk, path)
        try:
            num_runs = rebuild(self.disk, self.runs, index)
        except BaseException:
            index.close()
            raise
        if num_runs or self.disk.exists(self.path / BROKEN):
            log.warning(
                "new index for %s (%s): %d runs found in the files", self.path, reason, num_runs
            )
        return index

    def _settle(self) -> None:
        """Make index and files agree and fit the budget; a corrupt page may be noticed only
        here.
        """
        try:
            self.sweep()
            self._fit()
        except sqlite3.Error as error:
            if not self.recover(error):
                raise
            self._fit()

    def _fit(self) -> None:
        """Fit the budget, which may be smaller than that of the process before: evict what that
        has listed as pinned last.
        """
        if self._short(0) > 0:
            listed = read_pins(self.disk, self.path)
            prefixes = [(each.fingerprint, each.pin.prefix) for each in listed]
            self.pinned = self.index.runs_of(prefixes, self.budget)
            self.make_room(0, [])
            self.pinned = {}
        self.make_room(0, [])

    def recover(self, error: sqlite3.Error) -> bool:
        """After an error on the index: if it is corrupt, or an earlier replacement failed, replace
        it by a new one. Returns whether it did.
        """
        if not (is_corrupt(error) or isinstance(error, sqlite3.ProgrammingError)):
            return False
        self.index.close()
        self.index = self._anew(str(error))
        self.sweep()
        return True

    def sweep(self) -> list[str]:
        """Make rows and files agree: two listings, no file is read. Returns the names of our files
        without a row; files of others stay.
        """
        sizes = {name: size for name, size in self.disk.sizes(self.runs).items() if is_run(name)}
        gone = [row_id for row_id, name, size in self.index.files() if sizes.get(name) != size]
        for row_id in gone:
            self.remove(self.index.below(row_id))
        known = {name for _, name, _ in self.index.files()}
        leftovers = sorted(name for name in sizes if name not in known)
        for name in leftovers:
            self._unlink(self.runs / name, sizes[name])
        if gone or leftovers:
            log.info(
                "swept %s: %d rows without their file, %d files without a row",
                self.path,
                len(gone),
                len(leftovers),
            )
        return leftovers

    # Changing.

    def add(self, run: NewRun, parts: Sequence[bytes | memoryview]) -> int:
        """Write a run for which there is room; returns its id. If this raises, the run is not
        stored.
        """
        path = self.file(run.name)
        try:
            self.disk.publish(path, parts)
            with self.index.transaction():
                row_id = self.index.insert(run)
        except BaseException:
            for left in (temporary(path), path):
                self._unlink(left, run.num_bytes)
            raise
        self._left.pop(path, None)  # a file that could not be removed is in use again
        return row_id

    def remove(self, rows: Sequence[Row]) -> None:
        """Delete rows, then their files. A file that cannot be removed stays counted."""
        with self.index.transaction():
            self.index.delete(row.id for row in rows)
        for row in rows:
            self.pinned.pop(row.name, None)
            self._unlink(self.file(row.name), row.num_bytes)

    def clear(self) -> int:
        """Remove every run; returns how many there were."""
        rows = self.index.rows()
        self.remove(rows)
        return len(rows)

    # The budget.

    def num_bytes(self) -> int:
        """Bytes on the disk: runs, the index and its log, and files that could not be removed."""
        sizes = self.disk.sizes(self.path).items()
        overhead = sum(size for name, size in sizes if is_file_of_store(name))
        return overhead + sum(self._left.values()) + self.index.num_bytes()

    def make_room(self, num_bytes: int, path: Sequence[Row]) -> bool:
        """Make room for `num_bytes` more by evicting cold leaves if needed; `path` and what is
        pinned is not evicted.

        Returns False, and evicts nothing, if evicting all of them would not be enough.
        """
        self._retry_left()
        if self._short(num_bytes) <= 0:
            return True
        self.disk.unlink(self.path / BROKEN)
        self.index.trim()
        kept = self.pinned | {row.name: row.num_bytes for row in path}
        evictable = self.index.num_bytes() - sum(kept.values())
        if num_bytes and self._short(num_bytes) > evictable:
            return False
        while (short := self._short(num_bytes)) > 0 and self._evict(
            short, path[-1].id if path else ROOT
        ):
            self.index.trim()  # the log entries of the evictions
        return self._short(num_bytes) <= 0

    def _short(self, num_bytes: int) -> int:
        """How many bytes must be freed to store `num_bytes` more."""
        return self.num_bytes() + num_bytes - self.budget

    def _evict(self, num_bytes: int, keep: int) -> int:
        """Remove the coldest leaves until `num_bytes` are freed; returns how many were."""
        cold: list[Row] = []
        with self.index.transaction():
            while num_bytes > 0 and (row := self.index.coldest_leaf(keep, self.pinned)):
                self.index.delete([row.id])
                cold.append(row)
                num_bytes -= row.num_bytes
        self.evicted_runs += len(cold)
        for row in cold:
            self._unlink(self.file(row.name), row.num_bytes)
        return len(cold)

    def _unlink(self, path: Path, size: int) -> None:
        if not (is_run if path.parent == self.runs else is_file_of_store)(path.name):
            return  # a damaged row may contain any name
        try:
            self.disk.unlink(path)
            self._left.pop(path, None)
        except OSError as error:
            log.warning("cannot remove %s: %s", path, error)
            self._left[path] = size

    def _retry_left(self) -> None:
        for path, size in list(self._left.items()):
            self._unlink(path, size)


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn errors inside the block into a StartupError about the store in `path`."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise StartupError(f"cannot use the store in {path}: {why}") from error


def room_for_run(file_bytes: int, num_tokens: int) -> int:
    """Bytes needed for a run's file and its row, whose tokens are in the index and in its log."""
    return file_bytes + 2 * 4 * num_tokens + _INDEX_RESERVE

"""The seam to the file system and to SQLite: every step of the store that can fail on its own is
one method here.

Tests put faults and power loss in its place. It knows paths, bytes and statements, nothing of what
they mean.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from radixserve.store.direct import LEAST_BYTES, DirectWriter

BUSY_SECONDS = 0.25
TEMPORARY = ".tmp"


class Corrupt(sqlite3.DatabaseError):
    """The index is broken, though SQLite does not say so."""


class Disk:
    """Steps on a real disk, for one thread at a time. All of them raise OSError, those on the index
    sqlite3.Error.
    """

    @cached_property
    def _direct(self) -> DirectWriter:
        return DirectWriter()

    def write(self, path: Path, parts: Sequence[bytes | memoryview]) -> None:
        """Create or replace a file of bytes that only its owner may read; nothing of it need be on
        the disk yet.
        """
        if sum(map(len, parts)) >= LEAST_BYTES and self._direct.write(path, parts):
            return
        with open(path, "wb", opener=_private) as file:
            for part in parts:
                file.write(part)

    def sync(self, path: Path) -> None:
        """Wait until a file, or the names in a folder, are on the disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def sizes(self, folder: Path) -> dict[str, int]:
        """Bytes of every file in a folder, by name. A file that goes away meanwhile is left out."""
        found = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_file(follow_symlinks=False):
                        found[entry.name] = entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    continue
        return found

    def read(self, path: Path, offset: int, target: memoryview) -> int:
        """Fill `target` with what the file holds from `offset` on; gives how many bytes there were."""
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < len(target) and (count := file.readinto(target[done:])):
                done += count
        return done

    def connect(self, path: Path, *, read_only: bool = False) -> sqlite3.Connection:
        """Open an index. Statements are their own transactions unless BEGIN says otherwise."""
        uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        found = sqlite3.connect(
            uri, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True
        )
        found.text_factory = _text
        return found

    def execute(
        self, connection: sqlite3.Connection, statement: str, values: Sequence[Any] = ()
    ) -> list[Any]:
        """Run one statement and fetch all it gives."""
        try:
            return connection.execute(statement, values).fetchall()
        except UnicodeDecodeError as error:  # SQLite says what is wrong and quotes the wrong bytes
            raise Corrupt("a message about the index that is no text") from error

    def publish(self, path: Path, parts: Sequence[bytes | memoryview]) -> None:
        """Make a file appear under its name whole and on the disk, or not at all.

        Raises:
            OSError: it did not work; the temporary is removed as far as that is possible.
        """
        unfinished = temporary(path)
        try:
            self.write(unfinished, parts)
            self.sync(unfinished)
            self.rename(unfinished, path)
        except OSError:
            with contextlib.suppress(OSError):
                self.unlink(unfinished)
            raise
        self.sync(path.parent)


def temporary(path: Path) -> Path:
    """Where a file is while it is written: beside its name, under another."""
    return path.with_name(path.name + TEMPORARY)


def _text(data: bytes) -> str:
    """Text of the index, which may be damaged; what is not UTF-8 will not be what anybody looks
    for.
    """
    return data.decode(errors="replace")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

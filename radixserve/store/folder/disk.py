"""The interface to the file system and to SQLite. Every operation of the store that can fail on its
own is one method here.

A held folder (`Disk.hold`) is accessed through its descriptor: its files are opened relative to it,
even if the path has changed since, and never through a link. Tests replace this class to simulate
faults and power loss. It knows paths, bytes and SQL statements, not their meaning.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import sqlite3
import stat
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from radixserve.store.folder.direct import LEAST_BYTES, DirectWriter
from radixserve.store.format.layout import TEMPORARY
from radixserve.store.format.rows import Corrupt

BUSY_SECONDS = 0.25
_SMALL_BYTES = 1 << 20
_BESIDE = ("", "-wal", "-shm", "-journal")  # what SQLite opens by itself


class Kind(enum.Enum):
    """The kind of a folder's entry; links are not followed."""

    FILE = enum.auto()
    FOLDER = enum.auto()
    OTHER = enum.auto()


class Disk:
    """Operations on a real disk, for one thread at a time. All of them raise OSError; those on the
    index raise sqlite3.Error.
    """

    @cached_property
    def _direct(self) -> DirectWriter:
        return DirectWriter()

    @cached_property
    def _held(self) -> dict[Path, int]:
        return {}

    @cached_property
    def _closers(self) -> list[weakref.finalize[[int], Disk]]:
        return []

    # Folders.

    def hold(self, path: Path) -> None:
        """Open a folder and keep it open until `release`. A folder inside a held folder must not be
        a link.
        """
        descriptor = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._closers.append(weakref.finalize(self, os.close, descriptor))
        self._held[path] = descriptor

    def release(self) -> None:
        """Close all held folders."""
        self._held.clear()
        for close in self._closers:
            close()
        self._closers.clear()

    def make_folder(self, path: Path) -> None:
        """Make a folder that only its owner may use, unless the name exists already."""
        name, folder = self._at(path)
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=folder)

    def names(self, folder: Path) -> dict[str, Kind]:
        """The names in a held folder, with their kinds."""
        with os.scandir(self._held[folder]) as entries:
            return {entry.name: _kind(entry) for entry in entries}

    def sizes(self, folder: Path) -> dict[str, int]:
        """Size in bytes of every file in a held folder, by name. A file that is removed meanwhile
        is left out.
        """
        found = {}
        with os.scandir(self._held[folder]) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        found[entry.name] = entry.stat(follow_symlinks=False).st_size
        return found

    # Files.

    def open(self, path: Path, flags: int) -> int:
        """Open a file and return its descriptor. Only the owner may read and write what is created.
        In a held folder only files and folders are opened, never links.
        """
        name, folder = self._at(path)
        if folder is None:
            return os.open(name, flags | os.O_CLOEXEC, 0o600)
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a pipe must not block
        descriptor = os.open(name, flags, 0o600, dir_fd=folder)
        if not flags & os.O_DIRECTORY and not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        return descriptor

    def status(self, path: Path) -> os.stat_result:
        """The status of a held folder, or of an entry in one."""
        if path in self._held:
            return os.fstat(self._held[path])
        name, folder = self._at(path)
        return os.stat(name, dir_fd=folder, follow_symlinks=False)

    def exists(self, path: Path) -> bool:
        """Whether the name exists. Any thread may call this."""
        try:
            self.status(path)
        except FileNotFoundError:
            return False
        return True

    def make_private(self, path: Path) -> None:
        """Make a file readable and writable by its owner only."""
        if stat.S_IMODE(self.status(path).st_mode) != 0o600:
            descriptor = self.open(path, os.O_RDONLY)
            try:
                os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)

    def contents(self, path: Path, size: int = _SMALL_BYTES) -> bytes:
        """The first `size` bytes of a file; the default reads a small file completely."""
        with open(self.open(path, os.O_RDONLY), "rb") as file:
            return file.read(size)

    def write(self, path: Path, parts: Sequence[bytes | memoryview]) -> None:
        """Create or replace a file that only its owner may read. It is not synced to the disk."""

        def create(flags: int = 0) -> int:
            return self._create(path, flags)

        if sum(map(len, parts)) >= LEAST_BYTES and self._direct.write(create, parts):
            return
        with open(create(), "wb") as file:
            for part in parts:
                file.write(part)

    def sync(self, path: Path) -> None:
        """Wait until a file, or the entries of a folder, are on the disk."""
        if path in self._held:
            os.fsync(self._held[path])
            return
        descriptor = self.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file, within a folder or from one to another."""
        (old, old_folder), (new, new_folder) = self._at(source), self._at(target)
        os.replace(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder)

    def unlink(self, path: Path) -> None:
        """Remove a file, if it is there."""
        name, folder = self._at(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)

    def size(self, path: Path) -> int:
        name, folder = self._at(path)
        return os.stat(name, dir_fd=folder, follow_symlinks=folder is None).st_size

    def read(self, path: Path, offset: int, target: memoryview) -> int:
        """Fill `target` from the file's bytes at `offset`; returns how many bytes were read."""
        with open(self.open(path, os.O_RDONLY), "rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < len(target) and (count := file.readinto(target[done:])):
                done += count
        return done

    def _at(self, path: Path) -> tuple[str, int | None]:
        """The name to use and the descriptor of its folder, if that is held."""
        folder = self._held.get(path.parent)
        return (str(path) if folder is None else path.name), folder

    def _create(self, path: Path, flags: int) -> int:
        """Create a new file, after removing one of that name: writing to it could change a link's
        target.
        """
        flags |= os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            return self.open(path, flags)
        except FileExistsError:
            Disk.unlink(self, path)
            return self.open(path, flags)

    # The index.

    def connect(self, path: Path, *, read_only: bool = False) -> sqlite3.Connection:
        """Open an index in a held folder. Each statement is a transaction of its own, except after
        BEGIN.

        SQLite opens files by path. So this checks, before and after, that the path leads to the
        held folder and that every file which SQLite would open is a regular file.

        Raises:
            OSError: the path leads elsewhere, or one of the files is a link.
        """
        if not read_only:
            with contextlib.suppress(FileExistsError):
                os.close(self.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        self._expect_in_place(path.parent)
        for suffix in _BESIDE:
            self._expect_file(path.with_name(path.name + suffix))
        uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
        found = sqlite3.connect(
            uri, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True
        )
        found.text_factory = _text
        try:
            self._expect_in_place(path.parent)
        except OSError:
            found.close()
            raise
        return found

    def is_in_place(self, folder: Path) -> bool:
        """Whether the path of a held folder still leads to it."""
        try:
            self._expect_in_place(folder)
        except OSError:
            return False
        return True

    def _expect_in_place(self, folder: Path) -> None:
        if not os.path.samestat(folder.stat(), self.status(folder)):
            raise OSError(errno.ESTALE, "another folder has taken its place", str(folder))

    def _expect_file(self, path: Path) -> None:
        if self.exists(path) and not stat.S_ISREG(self.status(path).st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))

    def execute(
        self, connection: sqlite3.Connection, statement: str, values: Sequence[Any] = ()
    ) -> list[Any]:
        """Run one statement and fetch all rows."""
        try:
            return connection.execute(statement, values).fetchall()
        except UnicodeDecodeError as error:  # SQLite's error message quotes the damaged bytes
            raise Corrupt("a message about the index that is no text") from error

    def publish(
        self, path: Path, parts: Sequence[bytes | memoryview], unfinished: Path | None = None
    ) -> None:
        """Write a file so that it appears under its name complete and synced, or not at all; until
        then it is at `unfinished`.

        Raises:
            OSError: writing failed; the temporary file is removed if possible.
        """
        unfinished = unfinished or temporary(path)
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
    """The path of the temporary file for `path`, in the same folder."""
    return path.with_name(path.name + TEMPORARY)


def _text(data: bytes) -> str:
    """Decode text of the index, which may be damaged; text that is not UTF-8 matches no search."""
    return data.decode(errors="replace")


def _kind(entry: os.DirEntry[str]) -> Kind:
    if entry.is_file(follow_symlinks=False):
        return Kind.FILE
    return Kind.FOLDER if entry.is_dir(follow_symlinks=False) else Kind.OTHER

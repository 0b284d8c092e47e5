"""The seam to the file system and to SQLite: every step of the store that can fail on its own is
one method here.

A folder that is held (`Disk.hold`) is reached through its descriptor: a file in it is opened by its
name in that folder, whatever has become of the path, and never through a link. Tests put faults and
power loss in the place of a disk. It knows paths, bytes and statements, nothing of what they mean.
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

from radixserve.store.direct import LEAST_BYTES, DirectWriter
from radixserve.store.layout import TEMPORARY

BUSY_SECONDS = 0.25
_SMALL_BYTES = 1 << 20
_BESIDE = ("", "-wal", "-shm", "-journal")  # what SQLite opens by itself


class Kind(enum.Enum):
    """What a name in a folder stands for; links are not followed."""

    FILE = enum.auto()
    FOLDER = enum.auto()
    OTHER = enum.auto()


class Corrupt(sqlite3.DatabaseError):
    """The index is broken, though SQLite does not say so."""


class Disk:
    """Steps on a real disk, for one thread at a time. All of them raise OSError, those on the index
    sqlite3.Error.
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
        """Open a folder for as long as this disk is used; one that lies in a held folder must be
        no link.
        """
        descriptor = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._closers.append(weakref.finalize(self, os.close, descriptor))
        self._held[path] = descriptor

    def release(self) -> None:
        """Let go of all held folders."""
        self._held.clear()
        for close in self._closers:
            close()
        self._closers.clear()

    def make_folder(self, path: Path) -> None:
        """Make a folder that only its owner may use, where there is nothing of that name."""
        name, folder = self._at(path)
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=folder)

    def names(self, folder: Path) -> dict[str, Kind]:
        """What is in a held folder."""
        with os.scandir(self._held[folder]) as entries:
            return {entry.name: _kind(entry) for entry in entries}

    def sizes(self, folder: Path) -> dict[str, int]:
        """Bytes of every file in a held folder, by name. A file that goes away meanwhile is left
        out.
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
        """A descriptor; what is created only its owner may read and write. In a held folder
        neither links nor anything but files and folders are opened.
        """
        name, folder = self._at(path)
        if folder is None:
            return os.open(name, flags | os.O_CLOEXEC, 0o600)
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe must not make us wait
        descriptor = os.open(name, flags, 0o600, dir_fd=folder)
        if not flags & os.O_DIRECTORY and not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        return descriptor

    def status(self, path: Path) -> os.stat_result:
        """Of a held folder, or of what has that name in one."""
        if path in self._held:
            return os.fstat(self._held[path])
        name, folder = self._at(path)
        return os.stat(name, dir_fd=folder, follow_symlinks=False)

    def exists(self, path: Path) -> bool:
        """Something has that name; may be asked from any thread."""
        try:
            self.status(path)
        except FileNotFoundError:
            return False
        return True

    def make_private(self, path: Path) -> None:
        """Take a file from everybody but its owner."""
        if stat.S_IMODE(self.status(path).st_mode) != 0o600:
            descriptor = self.open(path, os.O_RDONLY)
            try:
                os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)

    def contents(self, path: Path, size: int = _SMALL_BYTES) -> bytes:
        """The first bytes of a file, by default all of a small one."""
        with open(self.open(path, os.O_RDONLY), "rb") as file:
            return file.read(size)

    def write(self, path: Path, parts: Sequence[bytes | memoryview]) -> None:
        """Create or replace a file of bytes that only its owner may read; nothing of it need be on
        the disk yet.
        """

        def create(flags: int = 0) -> int:
            return self._create(path, flags)

        if sum(map(len, parts)) >= LEAST_BYTES and self._direct.write(create, parts):
            return
        with open(create(), "wb") as file:
            for part in parts:
                file.write(part)

    def sync(self, path: Path) -> None:
        """Wait until a file, or the names in a folder, are on the disk."""
        if path in self._held:
            os.fsync(self._held[path])
            return
        descriptor = self.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Within one folder, or between two."""
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
        """Fill `target` with what the file holds from `offset` on; gives how many bytes
        there were.
        """
        with open(self.open(path, os.O_RDONLY), "rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < len(target) and (count := file.readinto(target[done:])):
                done += count
        return done

    def _at(self, path: Path) -> tuple[str, int | None]:
        """A name and the descriptor of the folder that it is in, if that is held."""
        folder = self._held.get(path.parent)
        return (str(path) if folder is None else path.name), folder

    def _create(self, path: Path, flags: int) -> int:
        """A new file in the place of what may be there: writing to that would change what a link
        leads to.
        """
        flags |= os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            return self.open(path, flags)
        except FileExistsError:
            Disk.unlink(self, path)
            return self.open(path, flags)

    # The index.

    def connect(self, path: Path, *, read_only: bool = False) -> sqlite3.Connection:
        """Open an index in a held folder. Statements are their own transactions unless BEGIN says
        otherwise.

        SQLite opens files by their path. So the path is seen to lead to the held folder, before and
        afterwards, and all that SQLite would open to be plain files.

        Raises:
            OSError: it does not, or one of the files is a link.
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

    def _expect_in_place(self, folder: Path) -> None:
        if not os.path.samestat(folder.stat(), self.status(folder)):
            raise OSError(errno.ESTALE, "another folder has taken its place", str(folder))

    def _expect_file(self, path: Path) -> None:
        if self.exists(path) and not stat.S_ISREG(self.status(path).st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))

    def execute(
        self, connection: sqlite3.Connection, statement: str, values: Sequence[Any] = ()
    ) -> list[Any]:
        """Run one statement and fetch all it gives."""
        try:
            return connection.execute(statement, values).fetchall()
        except UnicodeDecodeError as error:  # SQLite says what is wrong and quotes the wrong bytes
            raise Corrupt("a message about the index that is no text") from error

    def publish(
        self, path: Path, parts: Sequence[bytes | memoryview], unfinished: Path | None = None
    ) -> None:
        """Make a file appear under its name whole and on the disk, or not at all; `unfinished` is
        where it is until then.

        Raises:
            OSError: it did not work; the temporary is removed as far as that is possible.
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
    """Where a file is while it is written: beside its name, under another."""
    return path.with_name(path.name + TEMPORARY)


def _text(data: bytes) -> str:
    """Text of the index, which may be damaged; what is not UTF-8 will not be what anybody looks
    for.
    """
    return data.decode(errors="replace")


def _kind(entry: os.DirEntry[str]) -> Kind:
    if entry.is_file(follow_symlinks=False):
        return Kind.FILE
    return Kind.FOLDER if entry.is_dir(follow_symlinks=False) else Kind.OTHER

"""Files of one kind in a folder below the cache folder: results of one start that later ones use.

A file is read only if no other user can have written it (`cache_folder`), and its digest detects
damage. It is written in one step, so that readers see all of it or nothing. Knows nothing of what
the files hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from radixserve.cache_folder import cache_dir, check_owner, make_private, opened

_DIGEST_BYTES = 32
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Damaged(Exception):
    """A file holds something else than what was kept under its name."""


@dataclass(frozen=True, slots=True)
class KeptFiles:
    """The files in `folder`, which begin with `magic`: their kind, and the version of its form."""

    folder: str
    magic: bytes
    most: int | None = None  # files; those that were written longest ago go first

    def read(self, name: str) -> bytes | None:
        """What was kept under `name`; None if there is nothing that may be used.

        Raises:
            Damaged: the file is cut, changed, or was kept under another name.
        """
        try:
            with opened(self._path) as folder:
                data = self._bytes(folder, name)
        except OSError:
            return None  # if it is more than a missing file, `keep` meets the same fault
        start = len(self.magic) + _DIGEST_BYTES
        content = data[start:]
        if data[:start] != self.magic + _digest(name, content):
            raise Damaged(name)
        return content

    def keep(self, name: str, content: bytes) -> None:
        """Write `content` under `name`.

        Raises:
            OSError: it cannot be kept, or other users could have written the folder.
        """
        make_private(self._path)
        with opened(self._path) as folder:
            _replace(folder, name, self.magic + _digest(name, content) + content)
            if self.most is not None:
                _keep_newest(folder, self.most)

    @property
    def _path(self) -> Path:
        return cache_dir() / self.folder

    def _bytes(self, folder: int, name: str) -> bytes:
        with open(os.open(name, _READ, dir_fd=folder), "rb") as file:
            status = os.fstat(file.fileno())
            check_owner(status, f"{self._path / name}")
            return file.read() if stat.S_ISREG(status.st_mode) else b""


def _replace(folder: int, name: str, data: bytes) -> None:
    partial = f"{name}.{secrets.token_hex(8)}.tmp"
    try:
        with open(os.open(partial, _WRITE, 0o600, dir_fd=folder), "wb") as file:
            file.write(data)
        os.replace(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(partial, dir_fd=folder)
        raise


def _keep_newest(folder: int, most: int) -> None:
    def written(name: str) -> int:
        try:
            return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime_ns
        except FileNotFoundError:  # another process was here, too
            return 0

    for name in sorted(os.listdir(folder), key=written, reverse=True)[most:]:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + content).digest()

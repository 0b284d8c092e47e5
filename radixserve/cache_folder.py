"""The cache folder: where it is, and whether its content can be trusted.

Converted models and compiled kernels are kept in it. Both decide what the server answers, and
kernels are machine code, so a folder is used only if its owner is this user or root, and if no
other user can write to it. Imports no torch: the front process uses the folder, too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE_VARIABLE = "RADIXSERVE_CACHE_DIR"
ADVICE = f"set {CACHE_VARIABLE} to a folder of your own"


def cache_dir() -> Path:
    """`$RADIXSERVE_CACHE_DIR`, or ~/.cache/radixserve; it need not exist.

    Raises:
        OSError: the user has no home folder, and the variable is not set.
    """
    override = os.environ.get(CACHE_VARIABLE)
    try:
        return Path(override).expanduser() if override else Path.home() / ".cache" / "radixserve"
    except RuntimeError as error:
        raise OSError("this user has no home folder") from error


def reason(error: OSError) -> str:
    """The text of `error` for an operator: the system's message with the path, or our own."""
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def make_private(folder: Path) -> None:
    """Make `folder`, readable by this user only, if it does not exist.

    Raises:
        OSError: it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Opens `folder` as a file descriptor, after checking its owner and permissions.

    Raises:
        OSError: it is missing or a link, or other users can write to it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        check_owner(os.fstat(descriptor), str(folder))
        yield descriptor
    finally:
        os.close(descriptor)


def check_owner(status: os.stat_result, name: str) -> None:
    """Raises OSError, with a sentence about `name`, if another user may have written it."""
    if status.st_uid not in (0, os.geteuid()):
        raise OSError(f"{name} belongs to another user (uid {status.st_uid})")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"other users can write to {name} (chmod go-w makes it usable)")

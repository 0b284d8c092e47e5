"""The cache folder: where it is, and whether what lies there may be believed.

Converted models and compiled kernels are kept in it. Both decide what the server answers, and
kernels are machine code, so a folder counts only if nobody but its owner can write to it, and if
the owner is this user or root. Imports no torch: the front asks for folders, too.
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
    """What an operator should read of `error`: the system's words with the path, or ours."""
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def make_private(folder: Path) -> None:
    """Make `folder` where it is missing, so that only this user can look into it.

    Raises:
        OSError: it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """A descriptor of `folder`, which is checked before anything in it is read.

    Raises:
        OSError: it is missing, a link, or others can write to it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        check_owner(os.fstat(descriptor), str(folder))
        yield descriptor
    finally:
        os.close(descriptor)


def check_owner(status: os.stat_result, name: str) -> None:
    """Raises OSError, with a sentence about `name`, where somebody else may have written it."""
    if status.st_uid not in (0, os.geteuid()):
        raise OSError(f"{name} belongs to another user (uid {status.st_uid})")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"other users can write to {name} (chmod go-w makes it usable)")

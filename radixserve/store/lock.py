"""Who holds the folder of a store: one process, which may say that it does errands for others.

Knows the folder and one file in it; nothing of rows, runs and errands.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from radixserve.errors import StartupError
from radixserve.store.disk import Disk
from radixserve.store.layout import LOCK

_TRIES, _BETWEEN_SECONDS = 3, 0.01


def is_held(disk: Disk, path: Path) -> bool:
    """A process holds the folder now."""
    return is_locked(disk, path / LOCK)


def is_attended(disk: Disk, path: Path) -> bool:
    """A process holds the folder and does errands for others."""
    try:
        return is_held(disk, path) and disk.status(path / LOCK).st_size > 0
    except OSError:
        return False


def is_locked(disk: Disk, path: Path) -> bool:
    """A process holds the lock on this file now."""
    try:
        descriptor = disk.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def take(disk: Disk, path: Path) -> int:
    """The lock of a store's folder taken: a descriptor, to be closed to let go of it.

    Raises:
        StartupError: another process holds it.
        OSError: it cannot be made or opened.
    """
    descriptor = disk.open(path / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        _hold(descriptor)
        os.ftruncate(descriptor, 0)  # what the one before said of itself
    except BlockingIOError:
        os.close(descriptor)
        raise StartupError(f"the store in {path} is in use by another process") from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def attend(descriptor: int) -> None:
    """Tell others that this process does errands, as long as it holds the lock."""
    os.write(descriptor, b"attended\n")


def _hold(descriptor: int) -> None:
    """Take the lock; raises BlockingIOError where another process holds it for longer than it takes
    to look at it.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(_BETWEEN_SECONDS)
    raise BlockingIOError

"""The lock on a store's folder. One process holds it, and may announce that it answers requests.

Knows the folder and one file in it; nothing of rows, runs and the requests themselves.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from radixserve.errors import StartupError
from radixserve.store.folder.disk import Disk
from radixserve.store.format.layout import LOCK

_TRIES, _BETWEEN_SECONDS = 3, 0.01


def is_held(disk: Disk, path: Path) -> bool:
    """Whether a process holds the folder now."""
    return is_locked(disk, path / LOCK)


def is_attended(disk: Disk, path: Path) -> bool:
    """Whether a process holds the folder and answers requests (`store.admin.errands`)."""
    try:
        return is_held(disk, path) and disk.status(path / LOCK).st_size > 0
    except OSError:
        return False


def is_locked(disk: Disk, path: Path) -> bool:
    """Whether a process holds the lock on this file now."""
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
    """Take the lock of a store's folder. Returns a descriptor; closing it releases the lock.

    Raises:
        StartupError: another process holds it.
        OSError: the lock file cannot be made or opened.
    """
    descriptor = disk.open(path / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        _hold(descriptor)
        os.ftruncate(descriptor, 0)  # the announcement of the process before
    except BlockingIOError:
        os.close(descriptor)
        raise StartupError(f"the store in {path} is in use by another process") from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def attend(descriptor: int) -> None:
    """Announce that this process answers requests while it holds the lock."""
    os.write(descriptor, b"attended\n")


def _hold(descriptor: int) -> None:
    """Take the lock. Raises BlockingIOError if another process holds it for longer than `is_locked`
    does.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(_BETWEEN_SECONDS)
    raise BlockingIOError

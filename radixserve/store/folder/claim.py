"""Decides which folders are stores: those with our marker file, which is written when a store is
made.

A store removes files from its folder. So a store is made in an empty folder only, and a folder
without a marker is never treated as one. Stores of earlier versions, which wrote no marker, are
recognised if every file has one of our names and the index says that it is ours.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from radixserve.errors import StartupError
from radixserve.store.folder.disk import Disk, Kind
from radixserve.store.folder.lock import take
from radixserve.store.format.layout import (
    INDEX,
    LOCK,
    MARKER,
    RUNS,
    TEMPORARY,
    is_file_of_store,
    is_run,
)

APPLICATION = 0x72647876  # application id in the index's header; other SQLite files have another

_FIRST_LINE = b"radixserve store 1\n"
_MARKER_TEXT = _FIRST_LINE + b"radixserve writes files in this folder and removes them.\n"
_NOT_COUNTED = "lost+found"  # in an empty file system
_SQLITE, _APPLICATION_AT = b"SQLite format 3\0", 68
_LOCK_TEXTS = (b"", b"attended\n")


def prepare(path: Path, *, trust_others: bool) -> None:
    """Make a store in `path`, or check that one exists which can be used now, without holding it.
    So an unusable folder is refused before a model is loaded.

    Raises:
        StartupError: the folder is no store, cannot be used, is in use by another process, or other
            users can write to it and are not trusted.
    """
    disk = Disk()
    try:
        claim(disk, path, trust_others=trust_others)
        os.close(take(disk, path))
    except OSError as error:
        raise StartupError(f"cannot use the store in {path}: {error.strerror or error}") from error
    finally:
        disk.release()


def claim(disk: Disk, path: Path, *, trust_others: bool) -> None:
    """Make a store in `path`, or check that one exists there; `disk` then holds its folders.

    Raises:
        StartupError: the folder is not empty and not a store, or other users can write to it and
            are not trusted.
        OSError: the folder cannot be made or opened.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    disk.hold(path)
    _check_owner(disk, path, trust_others)
    if not _is_marked(disk, path):
        if not _is_empty(disk, path) and not _is_unmarked_store(disk, path):
            raise StartupError(
                f"{path} is not empty and no store of radixserve (it has no file {MARKER}):"
                " name a new or an empty folder"
            )
        disk.publish(path / MARKER, [_MARKER_TEXT])
    disk.make_folder(path / RUNS)
    _hold_runs(disk, path, trust_others)
    _make_private(disk, path, trust_others)


def recognise(disk: Disk, path: Path, *, trust_others: bool) -> None:
    """Check that `path` is a store, before reading it; `disk` then holds its folders. Changes
    nothing.

    Raises:
        StartupError: the folder is not a store, cannot be opened, or other users can write to it
            and are not trusted.
    """
    try:
        disk.hold(path)
        _check_owner(disk, path, trust_others)
        if not _is_marked(disk, path) and not _is_unmarked_store(disk, path):
            raise StartupError(f"there is no store in {path}: it has no file {MARKER}")
        _hold_runs(disk, path, trust_others)
        _check_kinds(disk, path)
    except FileNotFoundError:
        raise StartupError(f"there is no store in {path}") from None
    except OSError as error:
        raise StartupError(f"cannot read the store in {path}: {error.strerror or error}") from error


def _check_owner(disk: Disk, path: Path, trust_others: bool) -> None:
    status = disk.status(path)
    allowed = "or allow it (setting disk_trust_others; --trust-others of the cache commands)"
    if trust_others:
        return
    if status.st_uid != os.geteuid():
        raise StartupError(
            f"the store in {path} belongs to another user (uid {status.st_uid}):"
            f" run as that user, {allowed}"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        who = "everybody" if status.st_mode & stat.S_IWOTH else "its group"
        raise StartupError(
            f"the store in {path} can be written by {who}: chmod go-w it and check what is in it,"
            f" {allowed}"
        )


def _hold_runs(disk: Disk, path: Path, trust_others: bool) -> None:
    """Hold the store's folder of runs, which must not be a link."""
    if disk.names(path).get(RUNS) != Kind.FOLDER:
        raise StartupError(f"{path / RUNS} is not a folder, as it is in a store")
    disk.hold(path / RUNS)
    _check_owner(disk, path / RUNS, trust_others)


def _check_kinds(disk: Disk, path: Path) -> list[str]:
    """The names of our files in the folder; each must be a regular file and not a link."""
    kinds = {name: kind for name, kind in disk.names(path).items() if is_file_of_store(name)}
    for name, kind in kinds.items():
        if kind != Kind.FILE:
            raise StartupError(f"{path / name} is not a plain file, as it is in a store")
    return list(kinds)


def _make_private(disk: Disk, path: Path, trust_others: bool) -> None:
    """Make all files readable by their owner only, because prompts can be read from the index."""
    for name in _check_kinds(disk, path):
        try:
            disk.make_private(path / name)
        except PermissionError:
            if not trust_others:  # otherwise another user may own the file
                raise


def _is_marked(disk: Disk, path: Path) -> bool:
    kind = disk.names(path).get(MARKER)
    return kind == Kind.FILE and disk.contents(path / MARKER).startswith(_FIRST_LINE)


def _is_empty(disk: Disk, path: Path) -> bool:
    """Whether the folder is empty, or holds only the remains of an interrupted `claim`."""
    return set(disk.names(path)) <= {_NOT_COUNTED, MARKER + TEMPORARY}


def _is_unmarked_store(disk: Disk, path: Path) -> bool:
    """Whether the folder is certainly a store of a version that wrote no marker."""
    kinds = disk.names(path)
    kinds.pop(_NOT_COUNTED, None)
    if kinds.pop(RUNS, None) != Kind.FOLDER or not {INDEX, LOCK} <= set(kinds):
        return False
    if not all(is_file_of_store(name) and kind == Kind.FILE for name, kind in kinds.items()):
        return False
    header = disk.contents(path / INDEX, _APPLICATION_AT + 4)
    if not header.startswith(_SQLITE) or not header.endswith(APPLICATION.to_bytes(4, "big")):
        return False
    if disk.contents(path / LOCK, 64) not in _LOCK_TEXTS:
        return False
    disk.hold(path / RUNS)
    return all(is_run(name) for name in disk.names(path / RUNS))

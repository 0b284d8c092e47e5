"""Export and import of whole prefixes, each as one file; checking, repairing and clearing a store.

No model is needed: fingerprint and shape are read from the files and verified against the rows. All
functions work beside a server that holds the folder: reading needs no lock, and changes are made by
the server, which receives a request (`store.admin.errands`). All of them refuse a folder that is
not a store, and one that other users can write to, unless `trust_others` is given.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import torch

from radixserve.errors import StartupError
from radixserve.store.admin.changes import (
    Brought,
    Mended,
    bringing,
    exported_header,
    mending,
    problem_of,
    verified,
    whole,
)
from radixserve.store.admin.errands import Bring, Clear, Mend, ask
from radixserve.store.folder.claim import recognise
from radixserve.store.folder.disk import Disk
from radixserve.store.folder.disk_store import DiskStore
from radixserve.store.folder.index import Index, Newer, Unusable
from radixserve.store.folder.lock import is_attended, is_held
from radixserve.store.folder.store_folder import StoreFolder
from radixserve.store.format.layout import INDEX, RUNS, TEMPORARY, is_run
from radixserve.store.format.rows import Row, prefix_of
from radixserve.store.format.run_file import BadFile, RunHeader, encode_run, read_header

NO_LIMIT = sys.maxsize  # the server brings the folder within its budget when it starts


@contextlib.contextmanager
def reading(folder: Path, trust_others: bool = False) -> Iterator[Index]:
    """Open the index of a store for reading; another process may hold the store.

    Raises:
        StartupError: there is no store, or its index cannot be read.
    """
    with _recognised(folder, trust_others) as disk:
        if not disk.exists(folder / INDEX):
            raise StartupError(f"the store in {folder} has no index; cache check --fix makes one")
        try:
            index = Index(disk, folder / INDEX, read_only=True)
        except (Unusable, Newer, OSError, sqlite3.Error) as error:
            raise StartupError(f"cannot read the store in {folder}: {error}") from error
        try:
            yield index
        except sqlite3.Error as error:
            raise StartupError(f"cannot read the store in {folder}: {error}") from error
        finally:
            index.close()


def check(folder: Path, trust_others: bool = False) -> Mended:
    """Read and verify every run, also beside a running server; changes nothing."""
    with reading(folder, trust_others) as index:
        held = is_held(index.disk, folder)
        found = _verify(index.disk, folder / RUNS, index)
        known = {name for _, name, _ in index.files()}
        if not held:  # otherwise a file may be about to get its row
            names = index.disk.sizes(folder / RUNS)
            left = sorted(name for name in names if is_run(name) and name not in known)
            found.problems += [f"{name}: a file without a row" for name in left]
    return found


def fix(folder: Path, trust_others: bool = False) -> Mended:
    """Verify every run, and remove damaged ones with the runs below them. If a server holds the
    folder, the server does it.

    Raises:
        StartupError: there is no store, it cannot be used, or a process holds it that answers no
            requests.
    """
    with _recognised(folder, trust_others) as disk:
        if is_attended(disk, folder):
            return ask(disk, folder, Mend()).mended
        readable = disk.exists(folder / INDEX) and not is_held(disk, folder)
    before = check(folder, trust_others) if readable else Mended()
    with _opened(
        folder, trust_others
    ) as opened:  # opening removes rows without a file and files without a row
        whole(mending(opened))
    return before


def clear(folder: Path, trust_others: bool = False) -> int:
    """Remove every run; returns how many. If a server holds the folder, the server does it.

    Raises:
        StartupError: there is no store, or a process holds it that answers no requests.
    """
    with _recognised(folder, trust_others) as disk:
        if is_attended(disk, folder):
            return ask(disk, folder, Clear()).num_removed
    with _opened(folder, trust_others) as opened:
        return opened.clear()


def export_prefix(
    folder: Path, name: str, target: Path, trust_others: bool = False, force: bool = False
) -> RunHeader:
    """Write the whole prefix that ends with a run to one file; `name` is the run's name or its
    beginning. A plain file that exists is replaced only with `force`.

    Raises:
        StartupError: the file exists; no run, or more than one, has this name; or one of its files
            is damaged or missing.
    """
    _check_target(target, force)
    with reading(folder, trust_others) as index:
        rows = index.named(name)
        if len(rows) != 1:
            raise StartupError(
                f"{len(rows) or 'no'} runs in {folder} have a name that begins with {name!r}"
            )
        path = index.path(rows[0])
        unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}{TEMPORARY}")
        try:
            header, parts = _joined(index.disk, folder / RUNS, path)
            index.disk.publish(target, parts, unfinished)
        except (BadFile, OSError) as error:
            why = getattr(error, "strerror", None) or error
            raise StartupError(f"cannot export {name} to {target}: {why}") from error
    return header


def _check_target(target: Path, force: bool) -> None:
    """Raises StartupError if something exists there that may not be replaced."""
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_file():
        raise StartupError(f"{target} exists already and is no plain file")
    if not force:
        raise StartupError(f"{target} exists already; --force replaces it")


def import_prefix(folder: Path, source: Path, trust_others: bool = False) -> Brought:
    """Verify an exported file and store what is not stored yet. If a server holds the folder, the
    server does it. If the folder is new or empty, a store is made there.

    Raises:
        StartupError: the file is damaged or not an export, nothing can be stored, the folder is not
            a store, or a process holds it that answers no requests.
    """
    if _is_empty(folder):
        return _imported(folder, source, trust_others)
    with _recognised(folder, trust_others) as disk:
        if is_attended(disk, folder):
            return ask(disk, folder, Bring(str(source.absolute()))).brought
    return _imported(folder, source, trust_others)


def _imported(folder: Path, source: Path, trust_others: bool) -> Brought:
    header = exported_header(source)
    store = DiskStore(folder, NO_LIMIT, header.fingerprint, header.shape, trust_others=trust_others)
    try:
        return whole(bringing(store, source))
    finally:
        store.close()


def _is_empty(folder: Path) -> bool:
    """Whether the folder is missing or empty; whether a store can be made there is not checked
    here.
    """
    return not folder.is_dir() or not any(folder.iterdir())


@contextlib.contextmanager
def _recognised(folder: Path, trust_others: bool) -> Iterator[Disk]:
    """Check that the folder is a store and return a `Disk` that holds it."""
    disk = Disk()
    try:
        recognise(disk, folder, trust_others=trust_others)
        yield disk
    finally:
        disk.release()


@contextlib.contextmanager
def _opened(folder: Path, trust_others: bool) -> Iterator[StoreFolder]:
    """Hold the folder until the block ends."""
    opened = StoreFolder(folder, NO_LIMIT, Disk(), trust_others=trust_others)
    try:
        yield opened
    finally:
        opened.close()


def _joined(disk: Disk, runs: Path, path: list[Row]) -> tuple[RunHeader, list[memoryview]]:
    """Join the runs of one path to one run from position 0."""
    stops = [row.start for row in path[1:]] + [path[-1].start + path[-1].length]
    pieces = [verified(disk, runs, path[: end + 1]) for end in range(len(path))]
    cut = [
        (k[:, : stop - row.start], v[:, : stop - row.start])
        for (k, v), row, stop in zip(pieces, path, stops, strict=True)
    ]
    kv = tuple(torch.cat(each, dim=1) for each in zip(*cut, strict=True))
    last = read_header(disk, runs / path[-1].name)
    prefix, of_run = prefix_of(path), (last.namespace, 0, stops[-1], last.shape, last.digest)
    header = RunHeader(last.fingerprint, *of_run, prefix.num_public)
    return encode_run(header, prefix, (kv[0], kv[1]))


def _verify(disk: Disk, runs: Path, index: Index) -> Mended:
    found = Mended()
    for row in index.rows():
        problem = problem_of(disk, runs, index.path(row))
        if problem is not None and index.named(
            row.name
        ):  # otherwise it was evicted during the check
            found.problems.append(f"{row.name}: {problem}")
        found.num_runs += 1
    return found

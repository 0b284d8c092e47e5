"""Whole prefixes out of a store and into another, each as one file; and the check of every stored run.

Needs no model: what the K/V belongs to and its shape are read from the files, and then verified against the rows.
Reading works beside a server that holds the folder; what writes takes the lock itself, or finds it taken.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from radixserve.errors import StartupError
from radixserve.store.disk import Disk
from radixserve.store.disk_store import DiskStore
from radixserve.store.folder import INDEX, RUNS, StoreFolder, is_held
from radixserve.store.index import Index, Newer, Unusable
from radixserve.store.rows import Row
from radixserve.store.run_file import (
    KV,
    TOKEN_BYTES,
    BadFile,
    RunHeader,
    encode_run,
    read_header,
    read_run,
    read_tokens,
)

NO_LIMIT = sys.maxsize  # the server brings the folder within its budget when it starts


@dataclass(slots=True)
class Checked:
    """What a check found."""

    num_runs: int = 0
    problems: list[str] = field(default_factory=list)


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[Index]:
    """The index of a folder that another process may hold.

    Raises:
        StartupError: there is no store, or its index cannot be read.
    """
    path = folder / INDEX
    if not path.is_file():
        raise StartupError(f"there is no store in {folder}")
    try:
        index = Index(Disk(), path, read_only=True)
    except (Unusable, Newer, sqlite3.Error) as error:
        raise StartupError(f"cannot read the store in {folder}: {error}") from error
    try:
        yield index
    except sqlite3.Error as error:
        raise StartupError(f"cannot read the store in {folder}: {error}") from error
    finally:
        index.close()


def check(folder: Path) -> Checked:
    """Read and verify every run, beside a running server too; changes nothing."""
    held, disk = is_held(folder), Disk()
    with reading(folder) as index:
        found = _verify(disk, folder / RUNS, index)
        known = {name for _, name, _ in index.files()}
        if not held:  # otherwise a file may be about to get its row
            left = sorted(disk.sizes(folder / RUNS).keys() - known)
            found.problems += [f"{name}: a file without a row" for name in left]
    return found


def fix(folder: Path) -> Checked:
    """Verify every run, and remove what is wrong and what hangs below it; opening sweeps the rest.

    Raises:
        StartupError: another process holds the folder.
    """
    before = check(folder) if (folder / INDEX).is_file() and not is_held(folder) else Checked()
    opened = StoreFolder(folder, NO_LIMIT, Disk())
    try:
        for row in opened.index.rows():
            if opened.index.named(row.name) and _problem(opened.disk, opened.runs, opened.index, row):
                opened.remove(opened.index.below(row.id))
    finally:
        opened.close()
    return before


def clear(folder: Path) -> int:
    """Remove every run; gives how many.

    Raises:
        StartupError: there is no store, or another process holds it.
    """
    if not (folder / INDEX).is_file():
        raise StartupError(f"there is no store in {folder}")
    opened = StoreFolder(folder, NO_LIMIT, Disk())
    try:
        return opened.clear()
    finally:
        opened.close()


def export_prefix(folder: Path, name: str, target: Path) -> RunHeader:
    """Write the whole prefix that ends with the run `name` (or its beginning) to one file.

    Raises:
        StartupError: no run, or more than one, is called so; or a file of it is damaged or gone.
    """
    disk = Disk()
    with reading(folder) as index:
        rows = index.named(name)
        if len(rows) != 1:
            raise StartupError(f"{len(rows) or 'no'} runs in {folder} have a name that begins with {name!r}")
        path = index.path(rows[0])
        try:
            header, parts = _joined(disk, folder / RUNS, path)
            disk.publish(target, parts)
        except (BadFile, OSError) as error:
            raise StartupError(f"cannot export {name}: {error}") from error
    return header


def import_prefix(folder: Path, source: Path) -> tuple[RunHeader, int]:
    """Verify an exported file and store what is not stored yet; gives its header and how many tokens were new.

    Raises:
        StartupError: the file is damaged or not an export, another process holds the folder, or nothing can be stored.
    """
    disk = Disk()
    try:
        header = read_header(disk, source)
        tokens = read_tokens(disk, source, header)
        k, v = read_run(disk, source, header, tokens)
    except (BadFile, OSError) as error:
        raise StartupError(f"cannot import {source}: {error}") from error
    if header.start:
        raise StartupError(
            f"cannot import {source}: it begins at position {header.start}; export writes whole prefixes"
        )
    store = DiskStore(folder, NO_LIMIT, header.fingerprint, header.shape)
    try:
        stored = store.put(header.namespace, tokens, 0, k, v)
        if store.match(header.namespace, tokens) < header.stop:
            raise StartupError(f"cannot import {source}: it could not be written to {folder}")
    finally:
        store.close()
    return header, stored


def _joined(disk: Disk, runs: Path, path: list[Row]) -> tuple[RunHeader, list[memoryview]]:
    """The runs of one path as one run from position 0."""
    stops = [row.start for row in path[1:]] + [path[-1].start + path[-1].length]
    pieces = [_verified(disk, runs, path[: end + 1]) for end in range(len(path))]
    cut = [
        (k[:, : stop - row.start], v[:, : stop - row.start])
        for (k, v), row, stop in zip(pieces, path, stops, strict=True)
    ]
    kv = tuple(torch.cat(each, dim=1) for each in zip(*cut, strict=True))
    last = read_header(disk, runs / path[-1].name)
    header = RunHeader(last.fingerprint, last.namespace, 0, stops[-1], last.shape, last.digest)
    return encode_run(header, _tokens(path), (kv[0], kv[1]))


def _verify(disk: Disk, runs: Path, index: Index) -> Checked:
    found = Checked()
    for row in index.rows():
        problem = _problem(disk, runs, index, row)
        if problem is not None and index.named(row.name):  # else it was evicted while we looked
            found.problems.append(f"{row.name}: {problem}")
        found.num_runs += 1
    return found


def _problem(disk: Disk, runs: Path, index: Index, row: Row) -> str | None:
    try:
        _verified(disk, runs, index.path(row))
    except (BadFile, OSError) as error:
        return str(error)
    return None


def _verified(disk: Disk, runs: Path, path: list[Row]) -> KV:
    """The K/V of the last run of a path, if file and row agree."""
    row = path[-1]
    header = read_header(disk, runs / row.name)
    theirs = (header.fingerprint, header.namespace, header.start, header.num_tokens, header.digest)
    if theirs != (row.fingerprint, row.namespace, row.start, row.length, row.digest):
        raise BadFile("file and row disagree")
    return read_run(disk, runs / row.name, header, _tokens(path))


def _tokens(path: list[Row]) -> bytes:
    """Token ids of the whole prefix, up to the end of the last run."""
    tokens = b""
    for row in path:
        tokens = tokens[: row.start * TOKEN_BYTES] + row.tokens
    return tokens

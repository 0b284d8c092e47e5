"""The changes that `radixserve cache` makes to an open store: repairing it and importing a prefix.

Each change is a generator that works in parts, so that other work on the same store can run between
them. The process that holds the folder runs it: the command itself, or a running server that
received the command's request (`store.admin.errands`).
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import msgspec

from radixserve.errors import StartupError
from radixserve.prefix import Prefix
from radixserve.store.folder.disk import Disk
from radixserve.store.folder.disk_store import MAX_RUN_TOKENS, DiskStore
from radixserve.store.folder.store_folder import StoreFolder
from radixserve.store.format.rows import Row, prefix_of
from radixserve.store.format.run_file import (
    BadFile,
    RunHeader,
    read_header,
    read_prefix,
    read_run,
)
from radixserve.tensors.kv import KV

T = TypeVar("T")
Parts = Generator[None, None, T]
"""A task that runs part by part; its return value is the result."""


class Mended(msgspec.Struct):
    """The damage that a check found, or that a repair removed."""

    num_runs: int = 0
    problems: list[str] = []


class Brought(msgspec.Struct):
    """A prefix that was imported."""

    fingerprint: str = ""
    num_tokens: int = 0
    num_new: int = 0  # tokens that were not stored before


def whole(parts: Parts[T]) -> T:
    """Run all parts, one after the other, and return the result."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            value: T = end.value
            return value


def mending(opened: StoreFolder) -> Parts[Mended]:
    """Repair a store: verify every run, one per part; remove damaged runs, the runs below them, and
    files without a row.
    """
    found = Mended()
    for row_id, _, _ in opened.index.files():
        rows = opened.index.below(row_id)
        if not rows:
            continue  # evicted meanwhile, or removed together with its parent
        found.num_runs += 1
        problem = problem_of(opened.disk, opened.runs, opened.index.path(rows[0]))
        if problem is not None:
            found.problems.append(f"{rows[0].name}: {problem}")
            opened.remove(rows)
        yield
    found.problems += [f"{name}: a file without a row" for name in opened.sweep()]
    return found


def bringing(store: DiskStore, source: Path) -> Parts[Brought]:
    """Import an exported file: verify it and store what is not stored yet, one run per part.

    Raises:
        StartupError: the file is damaged or not an export, or there is no room for it.
    """
    header, prefix, (k, v) = _exported(source)
    yield
    store, num_new = store.of_model(header.fingerprint, header.shape), 0
    for start in range(0, header.stop, MAX_RUN_TOKENS):
        stop = min(start + MAX_RUN_TOKENS, header.stop)
        num_new += store.put(prefix.first(stop), start, k[:, start:stop], v[:, start:stop])
        yield
    if store.match(prefix) < header.stop:
        raise StartupError(
            f"cannot import {source}: there is no room for it, or it could not be written"
        )
    return Brought(header.fingerprint, header.stop, num_new)


def exported_header(source: Path) -> RunHeader:
    """The header of an exported file.

    Raises:
        StartupError: the file is not an export, or cannot be read.
    """
    try:
        header = read_header(Disk(), source)
    except (BadFile, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise StartupError(f"cannot import {source}: {why}") from error
    if header.start:
        raise StartupError(
            f"cannot import {source}: it begins at position {header.start}; export writes "
            "whole prefixes"
        )
    return header


def _exported(source: Path) -> tuple[RunHeader, Prefix, KV]:
    header, disk = exported_header(source), Disk()
    try:
        prefix = read_prefix(disk, source, header)
        return header, prefix, read_run(disk, source, header, prefix)
    except (BadFile, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise StartupError(f"cannot import {source}: {why}") from error


def problem_of(disk: Disk, runs: Path, path: list[Row]) -> str | None:
    """What is wrong with the last run of a path; None if it is valid. Reads the whole file."""
    try:
        verified(disk, runs, path)
    except (BadFile, OSError) as error:
        return str(error)
    return None


def verified(disk: Disk, runs: Path, path: list[Row]) -> KV:
    """The K/V of the last run of a path, if file and row agree.

    Raises:
        BadFile: file and row disagree, or the file is damaged.
        OSError: it cannot be read.
    """
    row = path[-1]
    file = runs / Path(row.name).name
    header = read_header(disk, file)
    theirs = (header.fingerprint, header.namespace, header.start, header.num_tokens, header.digest)
    if theirs != (row.fingerprint, row.namespace, row.start, row.length, row.digest):
        raise BadFile("file and row disagree")
    prefix = prefix_of(path)
    if header.num_public != prefix.num_public:
        raise BadFile("file and row disagree")
    return read_run(disk, file, header, prefix)

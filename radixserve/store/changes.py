"""What `radixserve cache` changes in a store that is open: clear it, mend it, bring a prefix in.

Each change is done in parts, between which other work on the same store may go on: whoever holds
the folder does them, be it the command itself or a running server that was asked (`store.errands`).
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import msgspec

from radixserve.errors import StartupError
from radixserve.store.disk import Disk
from radixserve.store.disk_store import MAX_RUN_TOKENS, DiskStore
from radixserve.store.folder import StoreFolder
from radixserve.store.rows import Row
from radixserve.store.run_file import (
    KV,
    TOKEN_BYTES,
    BadFile,
    RunHeader,
    read_header,
    read_run,
    read_tokens,
)

T = TypeVar("T")
Parts = Generator[None, None, T]
"""Something that is done part by part; what it comes to is its value."""


class Mended(msgspec.Struct):
    """What a check found, and a mend removed."""

    num_runs: int = 0
    problems: list[str] = []


class Brought(msgspec.Struct):
    """A prefix that was imported."""

    fingerprint: str = ""
    num_tokens: int = 0
    num_new: int = 0  # tokens that were not stored before


def whole(parts: Parts[T]) -> T:
    """All parts, one after the other."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            value: T = end.value
            return value


def mending(opened: StoreFolder) -> Parts[Mended]:
    """Verify every run, a part each; remove what is wrong and what hangs below it, and files
    without a row.
    """
    found = Mended()
    for row_id, _, _ in opened.index.files():
        rows = opened.index.below(row_id)
        if not rows:
            continue  # it was evicted meanwhile, or hung below one that was removed
        found.num_runs += 1
        problem = problem_of(opened.disk, opened.runs, opened.index.path(rows[0]))
        if problem is not None:
            found.problems.append(f"{rows[0].name}: {problem}")
            opened.remove(rows)
        yield
    found.problems += [f"{name}: a file without a row" for name in opened.sweep()]
    return found


def bringing(store: DiskStore, source: Path) -> Parts[Brought]:
    """Verify an exported file and store what is not stored yet, a run in each part.

    Raises:
        StartupError: the file is damaged or not an export, or there is no room for it.
    """
    header, tokens, (k, v) = _exported(source)
    yield
    store, num_new = store.of_model(header.fingerprint, header.shape), 0
    for start in range(0, header.stop, MAX_RUN_TOKENS):
        stop = min(start + MAX_RUN_TOKENS, header.stop)
        num_new += store.put(
            header.namespace,
            tokens[: stop * TOKEN_BYTES],
            start,
            k[:, start:stop],
            v[:, start:stop],
        )
        yield
    if store.match(header.namespace, tokens) < header.stop:
        raise StartupError(
            f"cannot import {source}: there is no room for it, or it could not be written"
        )
    return Brought(header.fingerprint, header.stop, num_new)


def exported_header(source: Path) -> RunHeader:
    """What an exported file says of itself.

    Raises:
        StartupError: it is not an export, or cannot be read.
    """
    try:
        header = read_header(Disk(), source)
    except (BadFile, OSError) as error:
        raise StartupError(f"cannot import {source}: {error}") from error
    if header.start:
        raise StartupError(
            f"cannot import {source}: it begins at position {header.start}; export writes "
            "whole prefixes"
        )
    return header


def _exported(source: Path) -> tuple[RunHeader, bytes, KV]:
    header, disk = exported_header(source), Disk()
    try:
        tokens = read_tokens(disk, source, header)
        return header, tokens, read_run(disk, source, header, tokens)
    except (BadFile, OSError) as error:
        raise StartupError(f"cannot import {source}: {error}") from error


def problem_of(disk: Disk, runs: Path, path: list[Row]) -> str | None:
    """What is wrong with the last run of a path, None if nothing is. Reads the whole file."""
    try:
        verified(disk, runs, path)
    except (BadFile, OSError) as error:
        return str(error)
    return None


def verified(disk: Disk, runs: Path, path: list[Row]) -> KV:
    """The K/V of the last run of a path, if file and row agree.

    Raises:
        BadFile: they do not, or the file is damaged.
        OSError: it cannot be read.
    """
    row = path[-1]
    file = runs / Path(row.name).name
    header = read_header(disk, file)
    theirs = (header.fingerprint, header.namespace, header.start, header.num_tokens, header.digest)
    if theirs != (row.fingerprint, row.namespace, row.start, row.length, row.digest):
        raise BadFile("file and row disagree")
    return read_run(disk, file, header, tokens_of(path))


def tokens_of(path: list[Row]) -> bytes:
    """Token ids of the whole prefix, up to the end of the last run."""
    tokens = b""
    for row in path:
        tokens = tokens[: row.start * TOKEN_BYTES] + row.tokens
    return tokens

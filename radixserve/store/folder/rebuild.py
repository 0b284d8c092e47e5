"""Rebuilds a lost index from the files. Each file says what its K/V belongs to, and holds the token
ids of its whole prefix.

Reads headers and token ids but no K/V: a file's content is verified when it is loaded.
"""

from __future__ import annotations

from pathlib import Path

from radixserve.store.folder.disk import Disk
from radixserve.store.folder.index import ROOT, Index
from radixserve.store.format.layout import is_run
from radixserve.store.format.rows import NewRun
from radixserve.store.format.run_file import (
    BadFile,
    RunHeader,
    read_header,
    read_prefix,
    run_name,
)


def rebuild(disk: Disk, runs: Path, index: Index) -> int:
    """Insert rows for all files whose prefix is complete; returns how many. O(files); opens each
    four times.
    """
    headers = [
        (name, header)
        for name in sorted(disk.sizes(runs))
        if (header := _header(disk, runs / name))
    ]
    headers.sort(key=lambda each: each[1].start)  # parents before children
    with index.transaction():
        return sum(_adopt(disk, runs / name, header, index) for name, header in headers)


def _header(disk: Disk, path: Path) -> RunHeader | None:
    try:
        return read_header(disk, path) if is_run(path.name) else None
    except (BadFile, OSError):
        return None


def _adopt(disk: Disk, path: Path, header: RunHeader, index: Index) -> bool:
    """Insert the row of one file if its prefix is in the index and no other run has the same
    tokens.
    """
    try:
        prefix = read_prefix(disk, path, header)
    except (BadFile, OSError):
        return False
    if path.name != run_name(header.fingerprint, prefix, header.start):
        return False
    steps = index.walk(header.fingerprint, prefix)
    if sum(step.shared for step in steps) != header.start:
        return False
    parent = steps[-1].row.id if steps else ROOT
    about = (header.fingerprint, prefix.namespace, path.name, header.file_bytes, header.digest)
    index.insert(NewRun(parent, header.start, *about, prefix.behind(header.start)))
    return True

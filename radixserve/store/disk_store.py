"""The disk tier as an engine sees it: which prefix is stored, its K/V back, K/V in. Whatever fails
is a miss.

Owns the rules that join index, files and budget: only the rest behind the longest stored prefix is
written, long rests are cut into several runs, and nothing is given back that was not verified.
Knows token ids and tensors, no slots and no requests. One thread may use it, any one. Tokens are
`bytes` of packed int32.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from radixserve.cache.pool import KVShape
from radixserve.store.disk import Corrupt, Disk
from radixserve.store.folder import StoreFolder, room_for_run
from radixserve.store.index import ROOT
from radixserve.store.pause import Pause
from radixserve.store.rows import NewRun, Row, Step
from radixserve.store.run_file import (
    KV,
    TOKEN_BYTES,
    BadFile,
    RunHeader,
    encode_run,
    read_run,
    run_name,
)

MAX_RUN_TOKENS = 2048
_NOT_YET = "0" * 64

log = logging.getLogger(__name__)


@dataclass(slots=True)
class StoreStats:
    """What is stored now, and running totals since the store was opened."""

    runs: int = 0
    bytes: int = 0  # of the whole folder, index included
    budget: int = 0
    writing: bool = True  # false while it waits after repeated errors
    stored_tokens_total: int = 0
    evicted_runs_total: int = 0
    verify_failures_total: int = 0  # files that were not what they should be
    read_errors_total: int = 0
    write_errors_total: int = 0
    refused_total: int = 0  # runs for which there is no room
    skipped_total: int = 0  # puts while not writing


class DiskStore:
    """K/V of one model in a folder; other models' K/V may lie in the same folder and shares its
    budget.
    """

    def __init__(
        self,
        folder: Path,
        budget: int,
        fingerprint: str,
        shape: KVShape,
        *,
        disk: Disk | None = None,
        trust_others: bool = False,
    ) -> None:
        """Open or create the folder and hold it. `fingerprint` says what computed the K/V
        (`store.fingerprint`). A folder that others own or can write to is used only where
        `trust_others` says so.

        Bounded: a few listings and one statement, not a byte of K/V.

        Raises:
            StartupError: the folder is not empty and no store, others can write to it, another
                process holds it, or it cannot be used; names it.
        """
        self.fingerprint, self.shape = fingerprint, shape
        self._disk = disk or Disk()
        self._folder = StoreFolder(folder, budget, self._disk, trust_others=trust_others)
        self._pause = Pause()
        self._stats = StoreStats(budget=budget)

    def match(self, namespace: str, tokens: bytes) -> int:
        """How many of `tokens`, from the first on, are stored; one query per run, no file is
        touched.
        """
        with self._reading():
            return sum(step.shared for step in self._walk(namespace, tokens))
        return 0

    def load(self, namespace: str, tokens: bytes, start: int, stop: int) -> KV | None:
        """K and V of positions `start` to `stop` - 1, or of fewer from `start` on, or None.

        [layers, positions, kv_heads, dim], verified: fingerprint, namespace, token ids of the whole
        prefix, shapes, dtype, digest. A file that fails is removed with all that hangs below it.
        Reads whole files.
        """
        with self._reading():
            steps = self._walk(namespace, tokens[: stop * TOKEN_BYTES])
            pieces: list[KV] = []
            for step in steps:
                if step.row.start + step.shared <= start:
                    continue
                kv = self._verified(namespace, step.row, tokens)
                if kv is None:
                    break
                pieces.append(_cut(kv, max(start - step.row.start, 0), step.shared))
            return self._given(steps, pieces)
        return None

    def put(
        self, namespace: str, tokens: bytes, start: int, k: torch.Tensor, v: torch.Tensor
    ) -> int:
        """Store what is not stored yet of `tokens`; gives how many tokens that were.

        `k` and `v` [layers, positions, kv_heads, dim] hold positions `start` to the last of
        `tokens`. Nothing is stored where there would be a gap before `start`. Waits for the disk.
        An error is counted and ends it.
        """
        assert k.shape[1] == v.shape[1] == len(tokens) // TOKEN_BYTES - start, (
            "K/V for every position from start on"
        )
        if self._pause.on:
            self._stats.skipped_total += 1
            return 0
        before = self._stats.stored_tokens_total
        try:
            self._put(namespace, tokens, start, (k, v))
        except (OSError, sqlite3.Error, UnicodeEncodeError) as error:
            self._stats.write_errors_total += 1
            self._pause.failed(error)
            log.info("not stored: %s", error)
            self._recover(error)
        return self._stats.stored_tokens_total - before

    def clear(self) -> int:
        """Remove every run of every model; gives how many there were, 0 where that failed."""
        try:
            return self._folder.clear()
        except (OSError, sqlite3.Error) as error:
            self._stats.write_errors_total += 1
            self._recover(error)
            return 0

    def of_model(self, fingerprint: str, shape: KVShape) -> DiskStore:
        """The same open folder for another model's K/V, with counts of its own; closed with this
        one.
        """
        other = copy.copy(self)
        other.fingerprint, other.shape = fingerprint, shape
        other._stats = StoreStats(budget=self._stats.budget)
        return other

    @property
    def folder(self) -> StoreFolder:
        return self._folder

    def stats(self) -> StoreStats:
        """Counts of this moment; a few statements and a listing."""
        stats = self._stats
        stats.writing, stats.evicted_runs_total = not self._pause.on, self._folder.evicted_runs
        with self._reading():
            stats.runs, stats.bytes = self._folder.index.num_runs(), self._folder.num_bytes()
        return stats

    def close(self) -> None:
        """Let go of the folder."""
        self._folder.close()

    # Reading.

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """What fails inside is a miss."""
        try:
            yield
        except (OSError, sqlite3.Error, UnicodeEncodeError) as error:
            self._stats.read_errors_total += 1
            log.warning("the disk store cannot be read: %s", error)
            self._recover(error)

    def _walk(self, namespace: str, tokens: bytes) -> list[Step]:
        return self._folder.index.walk(self.fingerprint, namespace, tokens)

    def _verified(self, namespace: str, row: Row, tokens: bytes) -> KV | None:
        """The K/V of one whole run, or None after removing it."""
        header = RunHeader(
            self.fingerprint, namespace, row.start, row.length, self.shape, row.digest
        )
        try:
            if row.length > MAX_RUN_TOKENS:
                raise BadFile("the run has an impossible length")
            prefix = tokens[: row.start * TOKEN_BYTES] + row.tokens
            return read_run(self._disk, self._folder.file(row.name), header, prefix)
        except BadFile as error:
            self._stats.verify_failures_total += 1
            self._quarantine(row, error)
        except OSError as error:
            self._stats.read_errors_total += 1
            self._quarantine(row, error)
        return None

    def _quarantine(self, row: Row, error: Exception) -> None:
        """Remove a run that cannot be used, and those below it, which cannot be reached
        without it.
        """
        log.warning("stored run %s is not used and removed: %s", row.name, error)
        self._folder.remove(self._folder.index.below(row.id))

    def _given(self, steps: list[Step], pieces: list[KV]) -> KV | None:
        if not pieces:
            return None
        k, v = (
            torch.cat(each, dim=1) if len(each) > 1 else each[0]
            for each in zip(*pieces, strict=True)
        )
        self._touch([step.row.id for step in steps])
        return k, v

    def _touch(self, ids: list[int]) -> None:
        """Note the use; that it cannot be noted is no reason not to use what was read."""
        with self._reading():
            self._folder.index.touch(ids)

    def _recover(self, error: Exception) -> None:
        if isinstance(error, sqlite3.Error):
            try:
                self._folder.recover(error)
            except (OSError, sqlite3.Error) as again:
                log.warning("the index of the disk store could not be replaced: %s", again)

    # Writing.

    def _put(self, namespace: str, tokens: bytes, start: int, kv: KV) -> None:
        """Runs for the rest behind the longest stored prefix, each hanging at the one before."""
        steps = self._walk(namespace, tokens)
        path, depth = [step.row for step in steps], sum(step.shared for step in steps)
        if depth < start:
            return
        if path:
            self._folder.index.touch([row.id for row in path])
        for first in range(depth, len(tokens) // TOKEN_BYTES, MAX_RUN_TOKENS):
            prefix = tokens[: (first + MAX_RUN_TOKENS) * TOKEN_BYTES]
            part = _cut(kv, first - start, len(prefix) // TOKEN_BYTES - start)
            row = self._store(namespace, prefix, first, part, path)
            if row is None:
                return
            path.append(row)

    def _store(
        self, namespace: str, tokens: bytes, start: int, kv: KV, path: list[Row]
    ) -> Row | None:
        """One new run at `start`, the end of `tokens`; None where there is no room for it."""
        index = self._folder.index
        name = run_name(self.fingerprint, namespace, start, tokens)
        empty = RunHeader(self.fingerprint, namespace, start, kv[0].shape[1], self.shape, _NOT_YET)
        own, parent = tokens[start * TOKEN_BYTES :], path[-1].id if path else ROOT
        if index.named(name):
            raise Corrupt(f"a row of {name} is there and was not found")
        if not self._folder.make_room(
            room_for_run(empty.file_bytes, len(tokens) // TOKEN_BYTES), path
        ):
            self._stats.refused_total += 1
            return None
        header, parts = encode_run(empty, tokens, kv)
        about = (self.fingerprint, namespace, name, header.file_bytes, header.digest)
        self._folder.add(NewRun(parent, start, *about, own), parts)
        self._stats.stored_tokens_total += header.num_tokens
        self._pause.worked()
        return index.named(name)[0]


def _cut(kv: KV, start: int, stop: int) -> KV:
    """Some positions, as views."""
    return kv[0][:, start:stop], kv[1][:, start:stop]


def pack(token_ids: list[int]) -> bytes:
    """Token ids as packed native int32."""
    return np.asarray(token_ids, np.int32).tobytes()

"""The disk tier's interface for an engine: find the longest stored prefix, load its K/V, store K/V.
Every failure is a miss.

Owns the rules that connect index, files and budget: only the tokens after the longest stored prefix
are written, long stretches are cut into several runs, and only verified K/V is returned. Knows
token ids and tensors, no slots and no requests. One thread at a time may use it.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from radixserve.cache.listing import Listing
from radixserve.cache.survey import Parts
from radixserve.declared import Numbers
from radixserve.prefix import Branch, Prefix
from radixserve.questions import Pin, ShowTree
from radixserve.store.folder.breaker import Breaker
from radixserve.store.folder.counters import (
    ERRORS,
    EVICTED_RUNS,
    RUNS,
    SKIPPED,
    VERIFY_FAILURES,
    WRITING,
)
from radixserve.store.folder.disk import Disk
from radixserve.store.folder.index import ROOT
from radixserve.store.folder.listing import list_runs
from radixserve.store.folder.pin_file import StoredPin, encoded, read_pins
from radixserve.store.folder.store_folder import StoreFolder, room_for_run
from radixserve.store.format.layout import PINS
from radixserve.store.format.rows import Corrupt, NewRun, Row, Step
from radixserve.store.format.run_file import (
    BadFile,
    RunHeader,
    encode_run,
    read_run,
    run_name,
)
from radixserve.tensors.kv import KV, KVShape

MAX_RUN_TOKENS = 2048
_NOT_YET = "0" * 64
_MOVED = "{} was removed or replaced; only a restart of the server makes a new store"
_PIN_FILE_SHARE = 16  # of the budget, what the list of pins may fill: one in so many bytes

log = logging.getLogger(__name__)


@dataclass(slots=True)
class StoreStats:
    """What is stored now, and totals since the store was opened."""

    runs: int = 0
    bytes: int = 0  # of the whole folder, index included
    budget: int = 0
    writing: bool = True  # false while the circuit breaker is open
    stored_tokens_total: int = 0
    evicted_runs_total: int = 0
    verify_failures_total: int = 0  # files that failed verification
    read_errors_total: int = 0
    write_errors_total: int = 0
    refused_total: int = 0  # runs not stored for lack of room
    skipped_total: int = 0  # puts while not writing

    def numbers(self) -> Numbers:
        """What a server counts of it, as declared in `store.folder.counters`."""
        return {
            RUNS.key(): self.runs,
            WRITING.key(): int(self.writing),
            EVICTED_RUNS.key(): self.evicted_runs_total,
            VERIFY_FAILURES.key(): self.verify_failures_total,
            ERRORS.key("read"): self.read_errors_total,
            ERRORS.key("write"): self.write_errors_total,
            SKIPPED.key(): self.skipped_total + self.refused_total,
        }


class DiskStore:
    """K/V of one model in a folder. K/V of other models may be in the same folder and share its
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
        """Open or create the folder and hold it. `fingerprint` identifies what computed the K/V
        (`store.folder.fingerprint`). A folder that other users own or can write to is used only
        with `trust_others`.

        Cost: a few listings and one statement; no K/V is read.

        Raises:
            StartupError: the folder is not empty and not a store, other users can write to it,
                another process holds it, or it cannot be used. The message names the folder.
        """
        self.fingerprint, self.shape = fingerprint, shape
        self._disk = disk or Disk()
        self._folder = StoreFolder(folder, budget, self._disk, trust_others=trust_others)
        self._breaker = Breaker()
        self._stats = StoreStats(budget=budget)
        self._pinned: list[Prefix] = []
        self._most_pinned = 0  # bytes

    def match(self, prefix: Prefix) -> int:
        """How many tokens of `prefix`, from the first on, are stored. One query per run; no file is
        read.
        """
        with self._reading():
            return sum(step.shared for step in self._walk(prefix))
        return 0

    def load(self, prefix: Prefix, start: int, stop: int) -> KV | None:
        """K and V of positions `start` to `stop` - 1, or of the first ones of these, or None.

        [layers, positions, kv_heads, dim], verified: fingerprint, namespace, token ids of the whole
        prefix, shapes, dtype, digest. A file that fails is removed with all runs below it. Reads
        whole files.
        """
        with self._reading():
            steps = self._walk(prefix.first(stop))
            pieces: list[KV] = []
            for step in steps:
                if step.row.start + step.shared <= start:
                    continue
                kv = self._verified(step.row, prefix)
                if kv is None:
                    break
                pieces.append(_cut(kv, max(start - step.row.start, 0), step.shared))
            return self._given(steps, pieces)
        return None

    def put(self, prefix: Prefix, start: int, k: torch.Tensor, v: torch.Tensor) -> int:
        """Store the part of `prefix` that is not stored yet; returns how many tokens were new.

        `k` and `v` [layers, positions, kv_heads, dim] hold positions `start` to the last of
        `prefix`. Nothing is stored if that would leave a gap before `start`. Waits for the disk. An
        error is counted and ends the call.
        """
        assert k.shape[1] == v.shape[1] == prefix.num_tokens - start, (
            "K/V for every position from start on"
        )
        if self._breaker.is_open:
            self._stats.skipped_total += 1
            return 0
        before = self._stats.stored_tokens_total
        try:
            self._put(prefix, start, (k, v))
        except (OSError, sqlite3.Error, UnicodeEncodeError) as error:
            self._stats.write_errors_total += 1
            self._breaker.failed(self._why(error))
            log.info("not stored: %s", error)
            self._recover(error)
        return self._stats.stored_tokens_total - before

    def _why(self, error: Exception) -> Exception:
        """What an operator should know of a failed write."""
        runs = self._folder.runs
        return error if self._disk.is_in_place(runs) else OSError(_MOVED.format(runs))

    def clear(self) -> int:
        """Remove every run of every model; returns how many there were, 0 if that failed."""
        try:
            return self._folder.clear()
        except (OSError, sqlite3.Error) as error:
            self._stats.write_errors_total += 1
            self._recover(error)
            return 0

    def drop(self, branch: Branch) -> int:
        """Remove the runs of this model's K/V in `branch`, and all that continue them; returns how
        many tokens they had. A run that holds the end of `branch.tokens` goes whole, with what else
        branches off in it.

        Rows go first, in one transaction, so that nothing is found again even if the process dies
        while files are removed.
        """

        def rows() -> list[Row]:
            index = self._folder.index
            names = [each for each in index.namespaces(self.fingerprint) if branch.has(each)]
            if not branch.tokens:
                return [row for name in names for row in index.of(self.fingerprint, name)]
            return [row for name in names for row in self._beginning_with(name, branch.tokens)]

        return self._removed(rows)

    def _beginning_with(self, namespace: str, tokens: bytes) -> Iterator[Row]:
        """The runs of a namespace that begin with `tokens`, public ones before it included, and
        all that continue them.
        """
        index = self._folder.index
        for num_public in (0, *index.borders(self.fingerprint, namespace)):
            end = self._end_of(Prefix(namespace, tokens, num_public))
            below = [] if end is None else index.below(end.id)
            is_theirs = end is not None and end.namespace == namespace
            yield from (row for row in below if is_theirs or row.namespace == namespace)

    def drop_unused(self, namespaces: frozenset[str] | None, seconds: float) -> int:
        """Remove the runs of this model's K/V that were not used for so long, but for what is
        pinned; returns how many tokens they had. Every run was used when one that continues it was.
        """

        def rows() -> list[Row]:
            index = self._folder.index
            names = index.namespaces(self.fingerprint)
            wanted = [each for each in names if namespaces is None or each in namespaces]
            unused = [each for n in wanted for each in index.unused(self.fingerprint, n, seconds)]
            return [row for row in unused if row.name not in self._folder.pinned]

        return self._removed(rows)

    def keep(self, pins: Sequence[Pin], share: float) -> None:
        """Evict no run with K/V of these pins from now on, as far as they fit into this share of
        the budget, the first ones before others; and list them in the folder for the next server.
        One query per run of them.
        """
        self._pinned = [each.prefix for each in pins]
        self._most_pinned = int(share * self._stats.budget)
        self._protect()
        if self._breaker.is_open:
            return
        try:
            self._list(pins)
        except (OSError, sqlite3.Error) as error:
            self._stats.write_errors_total += 1
            log.info("the list of pins was not stored: %s", error)
            self._recover(error)

    def _list(self, pins: Sequence[Pin]) -> None:
        """List the pins in the folder, if there is room; those of other models stay listed."""
        folder = self._folder.path
        mine = [StoredPin.of(self.fingerprint, each) for each in pins]
        others = [
            each for each in read_pins(self._disk, folder) if each.fingerprint != self.fingerprint
        ]
        parts = encoded([*mine, *others], self._stats.budget // _PIN_FILE_SHARE)
        if self._folder.make_room(sum(map(len, parts)), []):
            self._disk.publish(folder / PINS, parts)

    def pins_left(self) -> list[Pin]:
        """The pins of this model that an earlier server has left, with the seconds until their
        ends.
        """
        return [
            each.again()
            for each in read_pins(self._disk, self._folder.path)
            if each.fingerprint == self.fingerprint
        ]

    def _protect(self) -> None:
        """Find the runs of what is pinned."""
        mine, found = [(self.fingerprint, each) for each in self._pinned], dict[str, int]()
        with self._reading():
            found = self._folder.index.runs_of(mine, self._most_pinned)
        self._folder.pinned = found

    def _end_of(self, prefix: Prefix) -> Row | None:
        """The run that holds the last token of `prefix`; None if not all of it is stored."""
        steps = self._walk(prefix)
        is_whole = sum(step.shared for step in steps) == prefix.num_tokens
        return steps[-1].row if steps and is_whole else None

    def _removed(self, rows: Callable[[], list[Row]]) -> int:
        """Remove the runs that `rows` finds; returns how many tokens they had, 0 after an error."""
        try:
            found = list({row.id: row for row in rows()}.values())
            self._folder.remove(found)
            return sum(row.length for row in found)
        except (OSError, sqlite3.Error, UnicodeEncodeError) as error:
            self._stats.write_errors_total += 1
            log.warning("what was dropped is still in the disk store: %s", error)
            self._recover(error)
            return 0

    def show(self, question: ShowTree) -> Parts[Listing | None]:
        """The part of this model's tree of runs that `question` asks for; None if its run is gone
        or cannot be read. Walks all runs, `survey.NODES` in a part; reads no file.
        """
        with self._reading():
            return (yield from list_runs(lambda: self._folder.index, self.fingerprint, question))
        return None

    def of_model(self, fingerprint: str, shape: KVShape) -> DiskStore:
        """The same open folder for another model's K/V, with counts and pins of its own; closed
        with this one.
        """
        other = copy.copy(self)
        other.fingerprint, other.shape = fingerprint, shape
        other._pinned = []
        other._stats = StoreStats(budget=self._stats.budget)
        return other

    @property
    def folder(self) -> StoreFolder:
        return self._folder

    def stats(self) -> StoreStats:
        """The current counts; costs a few statements and a listing."""
        stats = self._stats
        stats.writing = not self._breaker.is_open
        stats.evicted_runs_total = self._folder.evicted_runs
        with self._reading():
            stats.runs, stats.bytes = self._folder.index.num_runs(), self._folder.num_bytes()
        return stats

    def close(self) -> None:
        """Release the folder."""
        self._folder.close()

    # Reading.

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """An error inside the block is counted, and the load is a miss."""
        try:
            yield
        except (OSError, sqlite3.Error, UnicodeEncodeError) as error:
            self._stats.read_errors_total += 1
            log.warning("the disk store cannot be read: %s", error)
            self._recover(error)

    def _walk(self, prefix: Prefix) -> list[Step]:
        return self._folder.index.walk(self.fingerprint, prefix)

    def _verified(self, row: Row, prefix: Prefix) -> KV | None:
        """The K/V of one whole run on the path of `prefix`, or None after removing it."""
        whole = row.prefix_behind(prefix)
        of_run = (whole.namespace, row.start, row.length, self.shape, row.digest)
        header = RunHeader(self.fingerprint, *of_run, whole.num_public)
        try:
            if row.length > MAX_RUN_TOKENS:
                raise BadFile("the run has an impossible length")
            file = self._folder.file(row.name)
            return read_run(self._disk, file, header, whole)
        except BadFile as error:
            self._stats.verify_failures_total += 1
            self._quarantine(row, error)
        except OSError as error:
            self._stats.read_errors_total += 1
            self._quarantine(row, error)
        return None

    def _quarantine(self, row: Row, error: Exception) -> None:
        """Remove a damaged run and the runs below it, which cannot be reached without it."""
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
        """Mark runs as used. If that fails, the K/V that was read is used nevertheless."""
        with self._reading():
            self._folder.index.touch(ids)

    def _recover(self, error: Exception) -> None:
        if isinstance(error, sqlite3.Error):
            try:
                self._folder.recover(error)
            except (OSError, sqlite3.Error) as again:
                log.warning("the index of the disk store could not be replaced: %s", again)

    # Writing.

    def _put(self, prefix: Prefix, start: int, kv: KV) -> None:
        """Store runs for the tokens after the longest stored prefix, each the child of the one
        before.
        """
        steps = self._walk(prefix)
        path, depth = [step.row for step in steps], sum(step.shared for step in steps)
        if depth < start:
            return
        if path:
            self._folder.index.touch([row.id for row in path])
        for first, stop in _runs(prefix, depth):
            run = prefix.first(stop)
            part = _cut(kv, first - start, run.num_tokens - start)
            row = self._store(run, first, part, path)
            if row is None:
                return
            path.append(row)
            if any(prefix.shares_more(each, first) for each in self._pinned):
                self._protect()

    def _store(self, prefix: Prefix, start: int, kv: KV, path: list[Row]) -> Row | None:
        """Store one new run from `start` to the end of `prefix`; None if there is no room."""
        index = self._folder.index
        name = run_name(self.fingerprint, prefix, start)
        of_run = (prefix.namespace, start, kv[0].shape[1])
        empty = RunHeader(self.fingerprint, *of_run, self.shape, _NOT_YET, prefix.num_public)
        parent = path[-1].id if path else ROOT
        if index.named(name):
            raise Corrupt(f"a row of {name} is there and was not found")
        if not self._folder.make_room(room_for_run(empty.file_bytes, prefix.num_tokens), path):
            self._stats.refused_total += 1
            return None
        header, parts = encode_run(empty, prefix, kv)
        about = (self.fingerprint, prefix.namespace, name, header.file_bytes, header.digest)
        self._folder.add(NewRun(parent, start, *about, prefix.behind(start)), parts)
        self._stats.stored_tokens_total += header.num_tokens
        self._breaker.worked()
        return index.named(name)[0]


def _runs(prefix: Prefix, start: int) -> Iterator[tuple[int, int]]:
    """First position and end of the runs that hold the tokens of `prefix` from `start` on, each in
    one namespace.
    """
    for _, end in prefix.parts():
        while start < end:
            stop = min(start + MAX_RUN_TOKENS, end)
            yield start, stop
            start = stop


def _cut(kv: KV, start: int, stop: int) -> KV:
    """The positions `start` to `stop` - 1, as views."""
    return kv[0][:, start:stop], kv[1][:, start:stop]

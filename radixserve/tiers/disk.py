"""The disk tier: what was computed is written behind the step, and read back on a hit that is worth
it.

A `DiskStore` on a thread of its own, which also does what commands ask (`store.errands`). Whoever
writes holds a lease until it is done, so that the slots it reads stay what they are; leases are
taken and released on the engine's thread. Knows slots and prefixes, no requests.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field, replace

from radixserve.cache.kvcache import KVCache, Lease
from radixserve.cache.pool import KVPool
from radixserve.cache.radix import TOKEN_BYTES
from radixserve.step import Slots, TierStats
from radixserve.store.disk_store import DiskStore
from radixserve.store.errands import Attendant
from radixserve.store.run_file import KV
from radixserve.tiers.copies import Reader, converted
from radixserve.tiers.pace import Pace
from radixserve.tiers.worker import Job, Worker

MAX_QUEUED = 64  # writes that wait; one more is left out
WRITE_TOKENS = 512  # written in one go: how long a load may have to wait
_STATS_SECONDS = 1.0
_LOOK_SECONDS = 0.25  # how often somebody looks whether a command has asked for something
_NEXT = bytes(
    TOKEN_BYTES
)  # a lease leaves the last token to compute: here that is one which does not exist

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Load:
    """What was asked of the disk, and once it is `done` what it gave: K/V from position
    `depth` on.
    """

    namespace: str
    tokens: bytes
    depth: int
    kv: KV | None = None
    done: bool = False
    given_up: bool = False

    def give_up(self) -> None:
        """Nobody waits any more; if it has not begun it need not."""
        self.given_up = True


@dataclass(slots=True)
class _Save:
    """A prefix to be written; `lease` protects `slots` until it is let go.

    Slots are read under `reading`, a part at a time, and written to the disk from that copy. So the
    engine can take the slots back at any moment: it waits for the copy of one part at most, and not
    for the disk.
    """

    namespace: str
    tokens: bytes
    slots: Slots
    lease: Lease
    held: bool = True
    reading: threading.Lock = field(default_factory=threading.Lock)


class DiskTier:
    """K/V in a folder, for the engine's thread."""

    name = "disk"

    def __init__(self, store: DiskStore, cache: KVCache, pool: KVPool, pace: Pace) -> None:
        self.skipped_total = 0  # writes left out: too many waited, or their slots were needed
        self.pace = pace
        self._store, self._cache, self._pool = store, cache, pool
        self._reader = Reader()  # for the worker's thread
        self._num_saves = 0  # that hold slots
        self._current: _Save | None = None  # begun; written by the worker's thread
        self._stats = store.stats()
        self._stats_at = 0.0
        self._worker = Worker("radixserve-disk", store.close)
        self._attendant = Attendant(store)
        self._attending = False  # a job of the attendant's is queued
        self._closing = threading.Event()
        threading.Thread(target=self._look_out, name="radixserve-errands", daemon=True).start()

    def fileno(self) -> int:
        """Readable when `settle` has something to do."""
        return self._worker.fileno()

    @property
    def writing(self) -> bool:
        """Slots are held for writing."""
        return self._num_saves > 0

    def describe(self, stats: TierStats) -> None:
        """Fill in what concerns the disk, as of the last second or so in which it was used."""
        seen = self._stats
        stats.disk_budget_bytes, stats.disk_used_bytes, stats.disk_runs = (
            seen.budget,
            seen.bytes,
            seen.runs,
        )
        stats.disk_writing, stats.stored_tokens_total = seen.writing, seen.stored_tokens_total
        stats.evicted_runs_total, stats.verify_failures_total = (
            seen.evicted_runs_total,
            seen.verify_failures_total,
        )
        stats.read_errors_total, stats.write_errors_total = (
            seen.read_errors_total,
            seen.write_errors_total,
        )
        stats.skipped_total = seen.skipped_total + seen.refused_total + self.skipped_total

    def load(self, namespace: str, tokens: bytes, depth: int) -> Load:
        """Ask for K/V of `tokens` (short of the last one) from position `depth` on."""
        load = Load(namespace, tokens[:-TOKEN_BYTES], depth)

        def done() -> None:
            load.done = True

        self._worker.submit(Job(lambda: self._load(load), done), urgent=True)
        return load

    def save(self, namespace: str, tokens: bytes) -> None:
        """Write what is not written yet of a published prefix, some time later."""
        if self._worker.num_patient >= MAX_QUEUED:
            self.skipped_total += 1
            return
        lease = self._cache.lease(namespace, tokens + _NEXT, 0)
        assert lease is not None, "a lease on nothing new needs no room"
        self._num_saves += 1
        save = _Save(namespace, tokens[: lease.num_cached * TOKEN_BYTES], lease.slots.copy(), lease)
        self._worker.submit(Job(lambda: self._save(save), lambda: self._let_go(save)), urgent=False)

    def relent(self) -> bool:
        """Give up writes for the slots they hold: those that were not begun, next time the one that
        was.

        False if there are none. Of the one that was begun the disk may get the part that is copied
        already.
        """
        jobs, current = self._worker.withdraw(), self._current
        self.skipped_total += len(jobs)
        for job in jobs:
            job.then()
        if jobs or current is None or not current.held:
            return bool(jobs)
        self.skipped_total += 1
        self._let_go(current)
        return True

    def settle(self) -> None:
        """Let go of what is written, and see what was loaded."""
        self._worker.settle()

    def close(self, seconds: float) -> bool:
        """Write what waits and close the store, for at most so long; False if that is not done by
        then. All of it is done by the worker's thread, because a disk may hang. The end of the
        process lets go of the folder in any case.
        """
        self._closing.set()
        return self._worker.close(seconds)

    def _let_go(self, save: _Save) -> None:
        """At its end, or before; on the engine's thread."""
        with save.reading:
            if save.held:
                self._num_saves -= 1
                save.lease.release()
            save.held = False

    def _look_out(self) -> None:
        """On a thread of its own: see what commands ask, and have it done beside loads and before
        writes.
        """
        while not self._closing.wait(_LOOK_SECONDS):
            if self._attendant.asked and not self._attending:
                self._attending = True
                self._worker.submit(Job(self._attend, lambda: None), urgent=True)

    # On the worker's thread.

    def _attend(self) -> bool:
        """One part of an errand; the next one queues behind the loads that came meanwhile."""
        try:
            finished = self._attendant.work()
        except OSError as error:
            log.warning("what a command asked for could not be done or answered: %s", error)
            finished = True
        if not finished and not self._closing.is_set():
            self._worker.submit(Job(self._attend, lambda: None), urgent=True)
            return True
        self._stats_at = 0.0
        self._note_stats()
        self._attending = False
        return True

    def _load(self, load: Load) -> bool:
        if load.given_up:
            return True
        since = time.perf_counter()
        num_stored = self._store.match(load.namespace, load.tokens)
        if num_stored > load.depth and self.pace.worth_loading():
            kv = self._store.load(load.namespace, load.tokens, load.depth, num_stored)
            if kv is not None:
                load.kv = (kv[0].pin_memory(), kv[1].pin_memory()) if self._pool.k.is_cuda else kv
                self.pace.load.observe(kv[0].shape[1], time.perf_counter() - since)
        self._note_stats()
        return True

    def _save(self, save: _Save) -> bool:
        """Write one part more; True if that was the last. With nothing to write the prefix is
        marked as used.
        """
        self._current = save
        num_tokens, depth = len(save.slots), self._store.match(save.namespace, save.tokens)
        stop = min(depth + WRITE_TOKENS, num_tokens)
        kv, stored = self._copied(save, depth, stop), 0
        if kv is not None:
            stored = self._store.put(save.namespace, save.tokens[: stop * TOKEN_BYTES], depth, *kv)
        finished = stop == num_tokens or stored < stop - depth
        if finished:
            self._current = None
        if finished and not self._worker.num_patient:
            self._stats_at = 0.0  # the last one for now
        self._note_stats()
        return finished

    def _copied(self, save: _Save, depth: int, stop: int) -> KV | None:
        """A part in host memory; None if the slots were taken back."""
        with save.reading:
            if not save.held:
                return None
            computed = self._reader.read(self._pool, save.slots[depth:stop])
            k, v = (converted(each, self._store.shape.dtype).cpu() for each in computed)
            return k, v

    def _note_stats(self) -> None:
        """A few statements: not after every job."""
        if time.monotonic() - self._stats_at >= _STATS_SECONDS:
            self._stats, self._stats_at = replace(self._store.stats()), time.monotonic()

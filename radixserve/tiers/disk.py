"""The disk tier: computed K/V is written while steps run, and read back on a hit if that is faster
than computing.

It runs a `DiskStore` on a worker thread of its own, which also does what commands ask for
(`store.admin.errands`). A write holds a lease until it is done, so that the slots it reads keep
their content; leases are taken and released on the engine's thread. Knows slots and prefixes, no
requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from radixserve.cache.kvcache import KVCache, Lease
from radixserve.declared import Numbers
from radixserve.prefix import Branch, Prefix
from radixserve.questions import Pin, ShowTree
from radixserve.step import Slots
from radixserve.store.admin.errands import Attendant
from radixserve.store.folder.counters import SKIPPED
from radixserve.store.folder.disk_store import DiskStore
from radixserve.tensors.copies import Reader, converted
from radixserve.tensors.kv import KV, KVPool
from radixserve.tiers.contract import Dropping, Found, Load, Showing
from radixserve.tiers.counters import TIER_BYTES, TIER_TOKENS
from radixserve.tiers.pace import TELLING_TOKENS, Pace
from radixserve.tiers.worker import Job, Worker

MAX_QUEUED = 64  # writes that may wait; more are skipped
WRITE_TOKENS = 512  # tokens per part of a write; a load waits for one part at most
_PATIENCE_SECONDS = 0.5  # to wait for a load, or as long as computing would take if that is more
_FIRST_PATIENCE_SECONDS = 3.0  # the same while nothing has been computed that tells how long
_STATS_SECONDS = 1.0
_LOOK_SECONDS = 0.25  # how often requests of commands are looked for

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Save:
    """A prefix to be written. `lease` protects `slots` until it is released.

    Slots are copied under the lock `reading`, one part at a time, and written to the disk from that
    copy. So the engine can take the slots back at any moment: it waits for the copy of one part at
    most, and not for the disk.
    """

    prefix: Prefix
    slots: Slots
    lease: Lease
    held: bool = True
    reading: threading.Lock = field(default_factory=threading.Lock)


class DiskTier:
    """K/V in a folder, used by the engine's thread."""

    name: Final = "disk"
    takes: Final = "computed"

    def __init__(
        self,
        store: DiskStore,
        cache: KVCache,
        pool: KVPool,
        pace: Pace,
        *,
        pin_share: float = 0.25,
    ) -> None:
        """Of the store's budget, what is pinned may fill `pin_share`."""
        self.skipped_total = 0  # writes skipped: too many waited, or their slots were needed
        self.pace = pace
        self._store, self._cache, self._pool = store, cache, pool
        self._pin_share = pin_share
        self._pins_left = store.pins_left()
        self._reader = Reader()  # used by the worker thread
        self._num_saves = 0  # writes that hold slots
        self._current: _Save | None = None  # the write that has begun; set by the worker thread
        self._stats = store.stats()
        self._stats_at = 0.0
        self._worker = Worker("radixserve-disk", store.close)
        self._attendant = Attendant(store)
        # A job of the attendant's is queued. Needs no lock: only `_look_out` sets it, and only the
        # job that it then queues unsets it.
        self._attending = False
        self._closing = threading.Event()
        threading.Thread(target=self._look_out, name="radixserve-errands", daemon=True).start()

    def fileno(self) -> int | None:
        """Readable when `settle` has something to do."""
        return self._worker.fileno()

    @property
    def writing(self) -> bool:
        """Whether slots are held for writing."""
        return self._num_saves > 0

    def numbers(self) -> Numbers:
        """See `Tier.numbers`. They are those of the second in which the disk was last used."""
        seen, skipped = self._stats, SKIPPED.key()
        store = seen.numbers()
        return {
            **store,
            skipped: store[skipped] + self.skipped_total,
            TIER_BYTES.key(self.name, "budget"): seen.budget,
            TIER_BYTES.key(self.name, "used"): seen.bytes,
            TIER_TOKENS.key(self.name, "down"): seen.stored_tokens_total,
        }

    @property
    def patience(self) -> float | None:
        """None while slots are held for writing: the file descriptor will tell."""
        return None if self.writing else 0.0

    def match(self, prefix: Prefix) -> Found:
        """Start looking how much of `prefix` is stored."""
        found = Found()

        def look() -> bool:
            found.num_tokens = self._store.match(prefix)
            return True

        def done() -> None:
            found.done = True

        self._worker.submit(Job(look, done), urgent=True)
        return found

    def fetch(self, prefix: Prefix, depth: int) -> Load:
        """Start loading K/V of `prefix` from position `depth` on."""
        load = Load(prefix, depth, time.monotonic() + self._patience(prefix.num_tokens - depth))

        def done() -> None:
            load.done = True

        self._worker.submit(Job(lambda: self._load(load), done), urgent=True)
        return load

    def _patience(self, num_tokens: int) -> float:
        """How many seconds to wait for a load of `num_tokens`. Right after a start, a machine that
        is too busy to load in the usual time would be slower still to compute.
        """
        computing = self.pace.prefill_seconds(num_tokens)
        usual = _FIRST_PATIENCE_SECONDS if computing is None else _PATIENCE_SECONDS
        return max(usual, computing or 0.0)

    def keep(self, pins: Sequence[Pin]) -> None:
        """See `Tier.keep`. They are listed in the folder, too."""

        def keep() -> bool:
            self._store.keep(pins, self._pin_share)
            return True

        self._worker.submit(Job(keep, lambda: None), urgent=True)

    def pins_left(self) -> list[Pin]:
        """See `Tier.pins_left`."""
        return self._pins_left

    def drop(self, branch: Branch) -> Dropping:
        """See `Tier.drop`. Writes that wait are given up."""
        return self._drop(lambda: self._store.drop(branch))

    def drop_unused(self, namespaces: frozenset[str] | None, seconds: float) -> Dropping:
        """See `Tier.drop_unused`."""
        return self._drop(lambda: self._store.drop_unused(namespaces, seconds))

    def _drop(self, work: Callable[[], int]) -> Dropping:
        dropping = Dropping()

        def drop() -> bool:
            dropping.num_tokens = work()
            self._stats_at = 0.0
            self._note_stats()
            return True

        def done() -> None:
            dropping.done = True

        while self.relent():
            pass
        self._worker.submit(Job(drop, done), urgent=True)
        return dropping

    def show(self, question: ShowTree) -> Showing:
        """See `Tier.show`. Loads go before each part."""
        showing = Showing()
        walk = showing.worked_out(self._store.show(question))

        def part() -> bool:
            for _ in walk:
                self._worker.submit(Job(part, lambda: None), urgent=True)
                break
            return True

        self._worker.submit(Job(part, lambda: None), urgent=True)
        return showing

    def prefilled(self, num_tokens: int, seconds: float) -> None:
        """The speed of prefill decides whether loading is worth it."""
        if num_tokens >= TELLING_TOKENS:
            self.pace.prefill.observe(num_tokens, seconds)

    def offer(self, prefix: Prefix, slots: Slots) -> None:
        """Queue a published prefix to be written, as far as it is not on the disk yet."""
        if self._worker.num_patient >= MAX_QUEUED:
            self.skipped_total += 1
            return
        lease = self._cache.hold(prefix)
        self._num_saves += 1
        save = _Save(prefix.first(lease.num_cached), slots[: lease.num_cached].copy(), lease)
        self._worker.submit(Job(lambda: self._save(save), lambda: self._let_go(save)), urgent=False)

    def relent(self) -> bool:
        """Give up writes to free the slots they hold: first those that have not begun, at the next
        call the one that has.

        False if there are none. Of the write that has begun, the disk may still get the part that
        is copied already.
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
        """Release the slots of finished writes, and mark finished loads as done."""
        self._worker.settle()

    def close(self, seconds: float) -> bool:
        """Write what is queued and close the store, for at most `seconds`; False if that is not
        finished by then. The worker thread does all of it, because a disk may hang. The end of the
        process unlocks the folder in any case.
        """
        self._closing.set()
        return self._worker.close(seconds)

    def _let_go(self, save: _Save) -> None:
        """Release the slots of a write, at its end or before; on the engine's thread."""
        with save.reading:
            if save.held:
                self._num_saves -= 1
                save.lease.release()
            save.held = False

    def _look_out(self) -> None:
        """A thread of its own: look for requests of commands, and have the worker do them after
        loads and before writes.
        """
        while not self._closing.wait(_LOOK_SECONDS):
            if self._attendant.asked and not self._attending:
                self._attending = True
                self._worker.submit(Job(self._attend, lambda: None), urgent=True)

    # On the worker thread.

    def _attend(self) -> bool:
        """Do one part of a command's request. The next part queues behind loads that have come
        meanwhile.
        """
        try:
            finished = self._attendant.work()
        except OSError as error:
            log.warning("what a command asked for could not be done or answered: %s", error)
            finished = True
        if not finished and not self._closing.is_set():
            self._worker.submit(Job(self._attend, lambda: None), urgent=True)
            return True
        self._attending = False  # before anything that could raise: nobody would be heard again
        self._stats_at = 0.0
        self._note_stats()
        return True

    def _load(self, load: Load) -> bool:
        if load.given_up:
            return True
        since = time.perf_counter()
        load.num_found = num_stored = self._store.match(load.prefix)
        if num_stored > load.depth and self.pace.worth_loading():
            kv = self._store.load(load.prefix, load.depth, num_stored)
            if kv is not None:
                load.kv = (kv[0].pin_memory(), kv[1].pin_memory()) if self._pool.k.is_cuda else kv
                self.pace.load.observe(kv[0].shape[1], time.perf_counter() - since)
        self._note_stats()
        return True

    def _save(self, save: _Save) -> bool:
        """Write one more part; True if it was the last. If all of the prefix is on the disk
        already, it is only marked as used.
        """
        self._current = save
        num_tokens, depth = len(save.slots), self._store.match(save.prefix)
        stop = min(depth + WRITE_TOKENS, num_tokens)
        kv, stored = self._copied(save, depth, stop), 0
        if kv is not None:
            stored = self._store.put(save.prefix.first(stop), depth, *kv)
        finished = stop == num_tokens or stored < stop - depth
        if finished:
            self._current = None
        if finished and not self._worker.num_patient:
            self._stats_at = 0.0  # nothing else is queued: report at once
        self._note_stats()
        return finished

    def _copied(self, save: _Save, depth: int, stop: int) -> KV | None:
        """One part in host memory, in the store's dtype; None if the slots were taken back."""
        with save.reading:
            if not save.held:
                return None
            computed = self._reader.read(self._pool, save.slots[depth:stop])
            k, v = (converted(each, self._store.shape.dtype).cpu() for each in computed)
            return k, v

    def _note_stats(self) -> None:
        """Refresh the numbers, at most once a second, because that takes a few SQL statements."""
        if time.monotonic() - self._stats_at >= _STATS_SECONDS:
            self._stats, self._stats_at = replace(self._store.stats()), time.monotonic()

"""The adapters of an engine: which are loaded, which sequences use them, and what they take of the
K/V budget.

Adapters and K/V share one budget in bytes: what adapters take, K/V has not. They get at most half
of it, so that a server does not run out of slots because of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from radixserve.adapters import AdapterInfo, AdapterSource
from radixserve.declared import Numbers
from radixserve.engine.counters import ADAPTER_BYTES, ADAPTERS
from radixserve.errors import AdapterRefused
from radixserve.step import MIN_SLOTS, Adapter

log = logging.getLogger(__name__)

_MOST_SHARE = 0.5  # of the budget
_NONE_HERE = "This engine takes no adapters."


class LoadedAdapter(Adapter, Protocol):
    """The factors of an adapter in memory: `model.adapters.LoadedAdapter`, or a fake."""

    @property
    def digest(self) -> str:
        """Of all that it computes."""

    @property
    def kv_digest(self) -> str:
        """Of what changes K/V; "" if nothing does."""

    @property
    def rank(self) -> int: ...

    @property
    def num_bytes(self) -> int: ...


Load = Callable[[AdapterSource, Callable[[int], None]], LoadedAdapter]
"""Reads an adapter; calls the function with the bytes that it will take, before it reads them."""


class Adapters:
    """Adapters by digest. Two with the same digest are one."""

    def __init__(self, load: Load | None, num_slots: int, slot_bytes: int) -> None:
        """Without `load` all are refused. The budget, for adapters and K/V together, is `num_slots`
        slots of `slot_bytes` bytes.
        """
        self.budget = num_slots
        self._load, self._slot_bytes = load, slot_bytes
        self._loaded: dict[str, LoadedAdapter] = {}
        self._uses: Counter[str] = Counter()  # sequences
        self._retired: set[str] = set()  # that are in use, and serve no further request

    @property
    def num_bytes(self) -> int:
        return sum(each.num_bytes for each in self._loaded.values())

    @property
    def kv_slots(self) -> int:
        """What the budget leaves to K/V."""
        taken = -(-self.num_bytes // self._slot_bytes)
        return max(min(MIN_SLOTS, self.budget), self.budget - taken)

    def numbers(self) -> Numbers:
        """What it counts, as declared in `engine.counters`."""
        return {ADAPTERS.key(): len(self._loaded), ADAPTER_BYTES.key(): self.num_bytes}

    def load(self, source: AdapterSource) -> LoadedAdapter:
        """Read an adapter. May run on any thread, one at a time; `add` makes it served.

        Raises:
            AdapterRefused: it cannot be served; one sentence says why.
        """
        if self._load is None:
            raise AdapterRefused(_NONE_HERE)
        found = self._load(source, self._check_room)
        if source.digest not in ("", found.digest):
            raise AdapterRefused(f"The adapter in {source.path} has changed since it was loaded.")
        return found

    def _check_room(self, num_bytes: int) -> None:
        most = int(_MOST_SHARE * self.budget * self._slot_bytes)
        wanted = self.num_bytes + num_bytes
        if wanted > most:
            raise AdapterRefused(
                f"The adapter needs {num_bytes:,} bytes of the K/V budget; all together that is "
                f"{wanted:,}, and adapters may take at most {most:,}, a half of it."
            )

    def add(self, source: AdapterSource, adapter: LoadedAdapter) -> AdapterInfo:
        """Serve an adapter from now on."""
        self._retired.discard(adapter.digest)
        self._loaded.setdefault(adapter.digest, adapter)
        return AdapterInfo(
            name=source.name,
            path=source.path,
            digest=adapter.digest,
            kv_digest=adapter.kv_digest,
            rank=adapter.rank,
            num_bytes=adapter.num_bytes,
        )

    def take(self, digest: str) -> LoadedAdapter | None:
        """The adapter of a sequence, until it is given back; None if it is not served."""
        if digest in self._retired or digest not in self._loaded:
            return None
        self._uses[digest] += 1
        return self._loaded[digest]

    def give_back(self, digest: str) -> bool:
        """A sequence with this adapter has ended. Returns whether memory became free."""
        self._uses[digest] -= 1
        return digest in self._retired and self._drop_unused(digest)

    def retire(self, digest: str) -> int:
        """Serve no further request with an adapter; returns how many sequences still use it."""
        if digest in self._loaded:
            self._retired.add(digest)
            self._drop_unused(digest)
        return self._uses[digest]

    def _drop_unused(self, digest: str) -> bool:
        if self._uses[digest] > 0:
            return False
        del self._uses[digest], self._loaded[digest]
        self._retired.discard(digest)
        return True


def tell(info: AdapterInfo) -> None:
    """Log that an adapter is served."""
    log.info(
        "adapter %s: rank %d, %s bytes, %s",
        *(info.name, info.rank, f"{info.num_bytes:,}"),
        "K/V of its own" if info.kv_digest else "the K/V of the model",
    )


def load_all(adapters: Adapters, sources: Sequence[AdapterSource]) -> list[AdapterInfo]:
    """Load the adapters of a start. Those that an earlier engine had are left out if they cannot be
    loaded any more; the log says so.

    Raises:
        AdapterRefused: a new one cannot be served.
    """
    found = []
    for source in sources:
        try:
            adapter = adapters.load(source)
        except AdapterRefused as error:
            if not source.digest:
                raise
            log.error("the adapter %s is not served any more: %s", source.name, error)
            continue
        found.append(adapters.add(source, adapter))
        tell(found[-1])
    return found

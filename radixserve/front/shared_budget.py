"""Divides one K/V budget among the engines of several models, by demand.

Reads the engines' numbers twice a second and asks `sharing_rule`. The model that gives shrinks
first; the other grows when the engine has confirmed that, by as much as is really free: what
running requests hold follows when they end. So the parts never add up to more than the budget,
whatever fails in between. An engine that is not there keeps its part.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from radixserve.cache.counters import EVICTED_TOKENS, KV_BYTES, OLDEST_SECONDS
from radixserve.declared import Numbers
from radixserve.engine.counters import WAITING
from radixserve.errors import ApiError, ConfigError
from radixserve.front.protocol import EngineClient
from radixserve.front.sharing_rule import Part, Transfer, decide
from radixserve.tiers import DEVICE

CHECK_SECONDS: Final = 0.5
MAX_MOVES: Final = 32  # that are shown
_FULL: Final = 0.1  # share of its part; with less of it available, requests that wait lack memory

log = logging.getLogger(__name__)


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """Memory that went from one model to another; `giver` None: it had belonged to no model."""

    at: float  # seconds since the epoch
    giver: str | None
    taker: str
    bytes: int
    why: str


class _Model:
    """One of the models, and what is remembered of it."""

    def __init__(self, engine: EngineClient, part: int) -> None:
        self.engine = engine
        self.part = part  # bytes that it may have
        self.excess = 0  # bytes that running requests hold beyond it
        self._numbers: Numbers = {}  # the newest, and since when they are these
        self._since = 0.0
        self._evicted = 0.0  # tokens at the last check
        self._used = 0.0  # bytes at the last check

    @property
    def works(self) -> bool:
        return self.engine.info is not None and self.engine.unready_reason is None

    def bounds(self) -> tuple[int, int]:
        """The least and the most bytes that its engine can have."""
        shown = self.engine.live_settings.shown()["kv_budget"]
        assert shown.max is not None, "a budget has bounds"
        return int(shown.at_start), int(shown.max)

    async def give(self, part: int, reason: str) -> None:
        """Let the engine have `part` bytes from now on. Raises ApiError if that cannot be said."""
        did = await self.engine.configure({"kv_budget": part}, "auto", reason)
        self.excess = did.excess_bytes.get(DEVICE, 0)
        self._evicted += did.evicted_tokens.get(DEVICE, 0)  # which shows no need of memory

    def is_settled(self) -> bool:
        """Whether the engine has what it may have."""
        value = self.engine.live_settings.shown()["kv_budget"].value
        return int(value) == min(self.part, self.bounds()[1])

    def look(self, now: float) -> Part:
        """What there is to know about it now."""
        stats = self.engine.stats
        if stats.numbers != self._numbers:  # an engine without work does not report
            self._numbers, self._since = stats.numbers, now
        evicted = stats.value(EVICTED_TOKENS)
        self.excess = max(0, int(stats.value(KV_BYTES, "budget")) - self.part)
        has_evicted, self._evicted = evicted > self._evicted, evicted
        used = stats.value(KV_BYTES, "used")
        is_filling, self._used = used > self._used, used
        unused = int(stats.value(KV_BYTES, "free"))
        available = unused + stats.value(KV_BYTES, "evictable")
        is_full = stats.value(WAITING) > 0 and available < _FULL * self.part
        oldest = stats.value(OLDEST_SECONDS)
        least, most = self.bounds()
        return Part(
            budget=self.part,
            least=least,
            most=most,
            unused=unused,
            oldest_seconds=oldest + now - self._since if available > unused else 0.0,
            is_short=has_evicted or is_full,
            is_filling=is_filling,
        )


class SharedBudget:
    """A budget of `total` bytes, of which each model begins with an equal part.

    Attributes:
        moves: the last ones, the newest first.
    """

    def __init__(
        self,
        total: int,
        engines: Mapping[str, EngineClient],
        on_move: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`engines` by the names of their models. `on_move` is called with the name of each model
        whose part was changed by demand.
        """
        self.total = total
        self.moves: deque[Moved] = deque(maxlen=MAX_MOVES)
        self._models = {name: _Model(each, total // len(engines)) for name, each in engines.items()}
        self._on_move, self._clock = on_move, clock

    @property
    def parts(self) -> dict[str, int]:
        """Bytes that each model may have. They never add up to more than `total`."""
        return {name: model.part for name, model in self._models.items()}

    def refuse_devices(self) -> None:
        """Raises ConfigError if memory of a device would have to move, which cannot be given back.
        To be called when all engines are loaded.
        """
        for name, model in self._models.items():
            if model.engine.info is not None and model.engine.info.device == "cuda":
                raise ConfigError(f"{name}: several models share memory only with device=cpu")

    async def run(self) -> None:
        """Check until cancelled. The log tells of a check that fails; the next one follows."""
        while True:
            try:
                await self.check()
            except ApiError as error:
                log.warning("memory does not move between models for now: %s", error)
            except Exception:
                log.exception("memory stays where it is, because a check of it failed")
            await asyncio.sleep(CHECK_SECONDS)

    async def check(self) -> None:
        """Check once, and move memory if that is worth it."""
        await self._settle()
        working = {name: model for name, model in self._models.items() if model.works}
        now = self._clock()
        parts = {name: model.look(now) for name, model in working.items()}
        transfer = decide(parts, self._free())
        if transfer is not None:
            await self._move(transfer)

    async def _settle(self) -> None:
        """Give every engine its part that does not have it, because a change failed or an engine
        has just begun.
        """
        for model in self._models.values():
            if model.works and not model.is_settled():
                await model.give(model.part, "its part of the memory that models share")

    def _free(self) -> int:
        """Bytes that no model has."""
        return max(0, self.total - sum(each.part + each.excess for each in self._models.values()))

    async def _move(self, transfer: Transfer) -> None:
        """Shrink the giver, and let the taker grow by what is free then."""
        if transfer.giver is not None:
            giver = self._models[transfer.giver]
            part = giver.part - transfer.num_bytes
            await giver.give(part, transfer.reason)
            giver.part = part
            self._on_move(transfer.giver)
        taker = self._models[transfer.taker]
        grown = min(transfer.num_bytes, self._free())
        if grown > 0:
            taker.part += grown  # beforehand, because a change that fails may be made later
            self._note(transfer, grown)
            await taker.give(taker.part, transfer.reason)
            self._on_move(transfer.taker)

    def _note(self, transfer: Transfer, num_bytes: int) -> None:
        self.moves.appendleft(
            Moved(
                at=round(time.time(), 3),
                giver=transfer.giver,
                taker=transfer.taker,
                bytes=num_bytes,
                why=transfer.reason,
            )
        )

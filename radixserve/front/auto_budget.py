"""Moves the K/V budgets by themselves: that of the device with `kv_budget_max`, that of host memory
with `host_budget_max`.

Reads the engine's numbers and the machine's memory every few seconds, asks `budget_rule` for each
budget, and with both of them on the CPU `share_rule`. It makes the change as `PUT /config` does. So
a change by hand counts, too: the rules go on from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from radixserve.cache.counters import GHOST_HIT_TOKENS, KV_BYTES
from radixserve.config import Settings
from radixserve.engine.counters import PROMPT_TOKENS
from radixserve.errors import ApiError
from radixserve.front.budget_rule import BudgetRule, Reading
from radixserve.front.protocol import EngineClient
from radixserve.front.share_rule import Bounded, ShareRule, Shares
from radixserve.machine import NO_LIMIT, THIS, Machine
from radixserve.step import EngineInfo, EngineStats
from radixserve.tiers.counters import TIER_BYTES, TIER_GHOST_HIT_TOKENS, TIER_TOKENS

CHECK_SECONDS: Final = 5.0
LEAST_SHARE: Final = 0.25  # of a budget at start, below which it does not shrink by default
_RESERVE_SHARE: Final = 0.05  # of the machine's memory
_LARGEST_RESERVE: Final = 4 << 30

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Changes:
    """New budgets in bytes, by the names of their settings, and why."""

    budgets: Mapping[str, int]
    reason: str


class AutoBudget:
    """The budgets of one server."""

    def __init__(
        self,
        engine: EngineClient,
        settings: Settings,
        on_change: Callable[[str], None],
        machine: Machine = THIS,
    ) -> None:
        """`on_change` is called with the name of the setting after each change."""
        self._engine = engine
        self._settings = settings
        self._on_change = on_change
        self._machine = machine
        # Host memory gives first where memory is short, because the device uses its own at once.
        self._rules = {
            name: BudgetRule() for name in ("host_budget", "kv_budget") if _moves(settings, name)
        }
        self._shares = ShareRule() if len(self._rules) == 2 else None

    async def run(self) -> None:
        """Check until cancelled. The log tells of a check that fails; the next one follows."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self.check()
            except Exception:
                log.exception("budgets stay as they are, because a check of them failed")

    async def check(self) -> None:
        """Check once. Without an engine that works nothing happens."""
        engine = self._engine
        if engine.info is None or engine.unready_reason is not None:
            return
        changes = self._change(engine.info) or self._move(engine.info)
        if changes is None:
            return
        try:
            await engine.configure(dict(changes.budgets), "auto", changes.reason)
        except ApiError as error:
            log.warning("%s: no change for now: %s", ", ".join(changes.budgets), error)
        else:
            for name in changes.budgets:
                self._on_change(name)

    def _change(self, info: EngineInfo) -> _Changes | None:
        """The change of one budget. While the memory that it gave may be on its way back to the
        system, no other budget gives some, too.
        """
        for name, rule in self._rules.items():
            change = rule.decide(self._reading(name, info))
            if change is not None:
                return _Changes({name: change.budget}, change.reason)
            if rule.is_settling:
                return None
        return None

    def _move(self, info: EngineInfo) -> _Changes | None:
        """What goes from one budget to the other in the same memory."""
        if self._shares is None or info.device == "cuda":
            return None
        stats = self._engine.stats
        move = self._shares.decide(
            Shares(
                device=self._bounded("kv_budget"),
                host=self._bounded("host_budget"),
                host_holds_more=self._settings.tier_dtype != "same",
                prompt_tokens=int(stats.total(PROMPT_TOKENS)),
                copied_up=int(stats.value(TIER_TOKENS, "host", "up")),
                missed=int(stats.value(TIER_GHOST_HIT_TOKENS, "host", "1.5x")),
            )
        )
        if move is None:
            return None
        return _Changes({"kv_budget": move.device, "host_budget": move.host}, move.reason)

    def _reading(self, name: str, info: EngineInfo) -> Reading:
        stats, bounded = self._engine.stats, self._bounded(name)
        unused = {"kv_budget": int(stats.value(KV_BYTES, "free")), "host_budget": _host_free(stats)}
        free, own = self._machine.free_bytes(), unused.pop(name)
        if info.device == "cuda":  # whose memory belongs to the pool from start to end
            unused.clear()
            free = free if name == "host_budget" else NO_LIMIT
        reserve = int(_RESERVE_SHARE * self._machine.memory_limit())
        return Reading(
            budget=bounded.budget,
            least=bounded.least,
            most=bounded.most,
            unused=own,
            promised=sum(unused.values()),
            free=free,
            reserve=min(reserve, _LARGEST_RESERVE),
            prompt_tokens=int(stats.total(PROMPT_TOKENS)),
            ghost_hits=_ghost_hits(stats, name),
        )

    def _bounded(self, name: str) -> Bounded:
        shown = self._engine.live_settings.shown()[name]
        assert shown.min is not None, "a budget has bounds"
        assert shown.max is not None, "a budget has bounds"
        least = self._settings.kv_budget_min if name == "kv_budget" else 0
        least = least or int(LEAST_SHARE * int(shown.at_start))
        return Bounded(int(shown.value), max(least, int(shown.min)), int(shown.max))


def _moves(settings: Settings, name: str) -> bool:
    """Whether the budget of this name moves by itself."""
    most = settings.kv_budget_max if name == "kv_budget" else settings.host_budget_max
    return most > 0


def _host_free(stats: EngineStats) -> int:
    """Bytes of the budget of host memory that hold no K/V."""
    return int(stats.value(TIER_BYTES, "host", "budget") - stats.value(TIER_BYTES, "host", "used"))


def _ghost_hits(stats: EngineStats, name: str) -> dict[float, int]:
    """Tokens that so many times this budget would have made hits."""
    device = {times: stats.value(GHOST_HIT_TOKENS, times) for (times,) in GHOST_HIT_TOKENS.series()}
    host = {
        times: stats.value(TIER_GHOST_HIT_TOKENS, tier, times)
        for tier, times in TIER_GHOST_HIT_TOKENS.series()
    }
    found = device if name == "kv_budget" else host
    return {float(times.removesuffix("x")): int(count) for times, count in found.items()}

"""Moves the K/V budget by itself between `kv_budget_min` and `kv_budget_max`.

Reads the engine's numbers and the machine's memory every few seconds, asks `budget_rule`, and makes
the change as `PUT /config` does. So a change by hand counts, too: the rule goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from radixserve.cache.counters import GHOST_HIT_TOKENS, KV_BYTES
from radixserve.config import Settings
from radixserve.engine.counters import PROMPT_TOKENS
from radixserve.errors import ApiError
from radixserve.front.budget_rule import BudgetRule, Reading
from radixserve.front.protocol import EngineClient
from radixserve.machine import NO_LIMIT, THIS, Machine
from radixserve.step import EngineInfo

CHECK_SECONDS: Final = 5.0
LEAST_SHARE: Final = 0.25  # of the budget at start, below which it does not shrink by default
_RESERVE_SHARE: Final = 0.05  # of the machine's memory
_LARGEST_RESERVE: Final = 4 << 30

log = logging.getLogger(__name__)


class AutoBudget:
    """The budget of one server."""

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
        self._rule = BudgetRule()

    async def run(self) -> None:
        """Check until cancelled. The log tells of a check that fails; the next one follows."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self.check()
            except Exception:
                log.exception("kv_budget stays as it is, because a check of it failed")

    async def check(self) -> None:
        """Check once. Without an engine that works nothing happens."""
        engine = self._engine
        if engine.info is None or engine.unready_reason is not None:
            return
        change = self._rule.decide(self._reading(engine.info))
        if change is None:
            return
        try:
            await engine.configure({"kv_budget": change.budget}, "auto", change.reason)
        except ApiError as error:
            log.warning("kv_budget stays as it is for now: %s", error)
        else:
            self._on_change("kv_budget")

    def _reading(self, info: EngineInfo) -> Reading:
        stats, shown = self._engine.stats, self._engine.live_settings.shown()["kv_budget"]
        assert shown.min is not None, "a budget has bounds"
        assert shown.max is not None, "a budget has bounds"
        least = self._settings.kv_budget_min or int(LEAST_SHARE * int(shown.at_start))
        reserve = int(_RESERVE_SHARE * self._machine.memory_limit())
        return Reading(
            budget=int(shown.value),
            least=max(least, int(shown.min)),
            most=int(shown.max),
            unused=int(stats.value(KV_BYTES, "free")),
            # The memory of a device belongs to the pool from start to end.
            free=self._machine.free_bytes() if info.device != "cuda" else NO_LIMIT,
            reserve=min(reserve, _LARGEST_RESERVE),
            prompt_tokens=int(stats.total(PROMPT_TOKENS)),
            ghost_hits={
                float(name.removesuffix("x")): int(stats.value(GHOST_HIT_TOKENS, name))
                for (name,) in GHOST_HIT_TOKENS.series()
            },
        )

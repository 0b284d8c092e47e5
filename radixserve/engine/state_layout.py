"""Decides how much of the budget states take, in models whose layers have some, and how often a
state is kept.

The budget is one, in bytes, and is divided at start: beside every slot it has room for a part of a
state slot. Inside of sequences a state is kept every N tokens, where N tokens of K/V take about as
many bytes as a state, so that hits end at most N tokens early and states at most double what a
cached token takes. Besides, a sequence of `EVEN_TOKENS` tokens has `MORE_STATES` state slots, for
its ends and for computing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from radixserve.cache.states import LEAST, StateSlots
from radixserve.config import Settings
from radixserve.errors import ConfigError
from radixserve.model.loaded import LoadedModel
from radixserve.tensors.kv import KVPool

EVEN_TOKENS: Final = 6144
"""The length of sequences that use slots and state slots up at the same time."""

MORE_STATES: Final = 4
"""State slots of a sequence besides those that are kept every N tokens."""

LEAST_EVERY: Final = 64
MOST_EVERY: Final = 2048
"""Bounds of N."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StateLayout:
    """How the K/V and the states of a model lie in memory."""

    loaded: LoadedModel
    state_bytes: int

    @property
    def every(self) -> int:
        """Tokens between two states that are kept: a power of two."""
        tokens = self.state_bytes // max(1, self.loaded.shape.slot_bytes)
        return min(max(1 << tokens.bit_length() - 1 if tokens else 0, LEAST_EVERY), MOST_EVERY)

    @property
    def slot_bytes(self) -> int:
        """What a token takes of the budget: a slot, and its part of a state slot."""
        states = -(-EVEN_TOKENS // self.every) + MORE_STATES  # of EVEN_TOKENS tokens
        return self.loaded.shape.slot_bytes + -(-self.state_bytes * states // EVEN_TOKENS)

    def state_slots(self, num_slots: int) -> StateSlots:
        """The state slots beside so many slots.

        Raises:
            ConfigError: they are too few.
        """
        main_bytes = self.loaded.shape.slot_bytes
        count = num_slots * (self.slot_bytes - main_bytes) // self.state_bytes
        if count < LEAST:
            raise ConfigError(
                f"kv_budget has room for {count} states of {self.state_bytes:,} bytes beside keys "
                f"and values; {LEAST} are needed"
            )
        log.info("%d states of %d bytes; one every %d tokens", count, self.state_bytes, self.every)
        return StateSlots(
            num_slots, count, self.every, main_bytes=main_bytes, slot_bytes=self.state_bytes
        )

    def pool(self, num_slots: int, states: StateSlots) -> KVPool:
        """The memory of these slots and state slots."""
        return self.loaded.pool(num_slots, states.allocator.capacity)


def state_layout(settings: Settings, loaded: LoadedModel) -> StateLayout | None:
    """The layout for a model; None if its layers have no states.

    Raises:
        ConfigError: a setting asks for what models with states do not do.
    """
    if loaded.states is None:
        return None
    for asked, name in (
        (settings.host_budget, "host_budget"),
        (settings.disk_path is not None, "disk_path"),
        (settings.speculate != "off", "speculate"),
        (settings.kv_events is not None, "kv_events"),  # not every block can be hit
    ):
        if asked:
            raise ConfigError(f"{name} does not go with this model, whose layers have a state")
    return StateLayout(loaded, loaded.states.slot_bytes)

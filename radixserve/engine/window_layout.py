"""Decides whether K/V of a model's windowed layers gets slots of its own, and how much of the
budget these take.

The budget is one, in bytes, and is divided at start: beside every slot it has room for a part of a
window slot. The part is such that sequences of `EVEN_TOKENS` tokens use both up at the same time,
if each has a window before its end and `MORE_TOKENS` window slots more. Shorter ones run short of
window slots first, then prefixes can be hit at fewer places; longer ones of slots.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Final

import torch

from radixserve.cache.windows import STRIDE, WindowSlots
from radixserve.config import Settings
from radixserve.model.loaded import LoadedModel
from radixserve.tensors.kv import KVPool, KVShape, WindowedLayers

EVEN_TOKENS: Final = 6144
"""The length of sequences that use slots and window slots up at the same time."""

MORE_TOKENS: Final = 256
"""Window slots of a sequence besides its last window, for places where others branch off."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WindowLayout:
    """How the K/V of a model with windowed layers lies in memory."""

    shape: KVShape  # of all layers
    window: int  # the longest of its layers
    is_windowed: tuple[bool, ...]

    @property
    def _main(self) -> KVShape:
        return replace(self.shape, layers=self.is_windowed.count(False))

    @property
    def _window_bytes(self) -> int:
        """Of a window slot."""
        return replace(self.shape, layers=self.is_windowed.count(True)).slot_bytes

    @property
    def slot_bytes(self) -> int:
        """What a token takes of the budget: a slot, and its part of a window slot."""
        num_window_slots = self.window + MORE_TOKENS  # of EVEN_TOKENS tokens
        return self._main.slot_bytes + -(-self._window_bytes * num_window_slots // EVEN_TOKENS)

    def least(self, step_tokens: int) -> int:
        """Window slots that one sequence needs at most: those of two windows, or of a window and a
        step, and what it gets in advance.
        """
        return 2 * self.window + step_tokens + 2 * STRIDE

    def window_slots(self, num_slots: int, step_tokens: int) -> WindowSlots | None:
        """The window slots beside so many slots; None if they are too few for one sequence."""
        part = self.slot_bytes - self._main.slot_bytes
        least, count = self.least(step_tokens), num_slots * part // self._window_bytes
        if count < least:
            log.info("keys and values of all layers are kept whole: the budget is small")
            return None
        return WindowSlots(
            num_slots,
            count,
            self.window,
            least=least,
            main_bytes=self._main.slot_bytes,
            slot_bytes=self._window_bytes,
        )

    def pool(self, num_slots: int, windows: WindowSlots) -> KVPool:
        """The memory of these slots and window slots."""
        device, count = torch.device("cpu"), windows.allocator.capacity
        layers = WindowedLayers(self.shape, self.is_windowed, count, device, windows.of)
        log.info(
            "keys and values of %d of %d layers are kept for windows of %d tokens",
            self.is_windowed.count(True),
            self.shape.layers,
            self.window,
        )
        return KVPool(self._main, num_slots, device, layers)


def window_layout(settings: Settings, loaded: LoadedModel) -> WindowLayout | None:
    """The layout for a model; None if K/V of all its layers stays whole, because none of them has
    a window, because windows are so long that little would be saved, or because of tiers.
    """
    windows = [each for each in loaded.windows if each is not None]
    if not windows or max(windows) + MORE_TOKENS >= EVEN_TOKENS:
        return None
    if settings.host_budget or settings.disk_path is not None:
        log.info("keys and values of all layers are kept whole, because tiers keep whole tokens")
        return None
    is_windowed = tuple(each is not None for each in loaded.windows)
    return WindowLayout(loaded.shape, max(windows), is_windowed)

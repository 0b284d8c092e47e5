"""The pins that the next engine gets when this one dies: what the engine has told of them, and how
much they held.

The token ids of pins are kept here, too, packed as they came: 16 MiB of them at most, because the
engine bounds them (`engine.pins.MAX_WANTED`). Knows no process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from radixserve.messages import PinChanges
from radixserve.prefix import Prefix
from radixserve.questions import Pin


@dataclass(slots=True, eq=False)
class KeptPin:
    """One pin. It has held `num_held` tokens, in this engine or in an earlier one, and has not
    given way since.
    """

    pin: Pin
    end: float  # by the clock of `KeptPins`
    num_held: int = 0
    is_over: asyncio.Event = field(default_factory=asyncio.Event)  # it has ended or given way

    @property
    def held(self) -> Prefix:
        """What it has held."""
        return self.pin.prefix.first(self.num_held)

    def holds(self, num_tokens: int) -> None:
        """An engine tells that it holds `num_tokens` tokens now: 0 if it gives way, because a new
        pin, which holds none yet, is not told of. A new engine computes what an earlier one held
        part by part, and may die before it is done, so the most counts.
        """
        if num_tokens:
            self.num_held = max(self.num_held, num_tokens)
            self.is_over.clear()
        else:
            self.lose()

    def lose(self) -> None:
        """Nobody is to compute for it, unless an engine tells that it holds something."""
        self.num_held = 0
        self.is_over.set()


class KeptPins:
    """The pins of one front. The engine bounds their number."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._pins: dict[str, KeptPin] = {}

    def note(self, changes: PinChanges) -> None:
        """The engine tells what became of its pins."""
        now = self._now()
        for pin in changes.made:
            kept = self._pins.setdefault(pin.id, KeptPin(pin, 0.0))
            kept.pin, kept.end = pin, now + pin.seconds_left
        for name in changes.seconds.keys() & self._pins.keys():
            self._pins[name].end = now + changes.seconds[name]
        for name in changes.held.keys() & self._pins.keys():
            self._pins[name].holds(changes.held[name])
        self._forget_ended()

    def again(self) -> list[Pin]:
        """What to ask the next engine for."""
        self._forget_ended()
        now = self._now()
        return [
            msgspec.structs.replace(each.pin, seconds_left=each.end - now)
            for each in self._pins.values()
        ]

    def holding(self) -> list[KeptPin]:
        """The pins that have held something, which a new engine has to compute."""
        self._forget_ended()
        return [each for each in self._pins.values() if each.num_held]

    def _forget_ended(self) -> None:
        now = self._now()
        for name in [name for name, each in self._pins.items() if each.end <= now]:
            self._pins.pop(name).lose()

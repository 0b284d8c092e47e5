"""The pins that the next engine gets when this one dies: what the engine has told of them.

Knows no process.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from radixserve.messages import PinChanges
from radixserve.questions import Pin


class KeptPins:
    """The pins of one front. The engine bounds their number."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._pins: dict[str, Pin] = {}
        self._ends: dict[str, float] = {}

    def note(self, changes: PinChanges) -> None:
        """The engine tells what became of its pins."""
        now = self._now()
        for pin in changes.made:
            self._pins[pin.id], self._ends[pin.id] = pin, now + pin.seconds_left
        for name in changes.seconds.keys() & self._pins.keys():
            self._ends[name] = now + changes.seconds[name]
        self._forget_ended()

    def again(self) -> list[Pin]:
        """What to ask the next engine for."""
        self._forget_ended()
        now = self._now()
        return [
            msgspec.structs.replace(pin, seconds_left=self._ends[name] - now)
            for name, pin in self._pins.items()
        ]

    def _forget_ended(self) -> None:
        now = self._now()
        for name in [name for name, end in self._ends.items() if end <= now]:
            del self._pins[name], self._ends[name]

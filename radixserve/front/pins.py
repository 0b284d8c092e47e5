"""The pins that the next engine gets when this one dies.

Only the engine knows what a pin holds. Here is what it was asked for, and when it ends, as far as
the engine has told. Knows no process.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from radixserve.questions import Pin, Pinned


class KeptPins:
    """The pins of one front. The engine bounds their number."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._pins: dict[str, Pin] = {}
        self._ends: dict[str, float] = {}

    def keep(self, asked: Pin, answer: Pinned) -> None:
        """The engine has answered a wish to pin."""
        if answer.status == "refused":
            return
        if asked.node is not None:  # the next engine numbers its nodes anew
            asked = msgspec.structs.replace(
                asked, node=None, namespace=answer.namespace, packed=answer.packed
            )
        self._pins[answer.id] = msgspec.structs.replace(asked, id=answer.id)
        self._ends[answer.id] = self._now() + answer.seconds_left

    def note(self, seconds: dict[str, float]) -> None:
        """The engine tells the seconds until the end of some pins; 0: they have ended."""
        for name in seconds.keys() & self._pins.keys():
            self._ends[name] = self._now() + seconds[name]
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

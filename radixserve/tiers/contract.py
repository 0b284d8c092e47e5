"""What the engine asks of a tier, whichever it is.

A tier keeps K/V of prefixes below the device. The engine offers it K/V, fetches K/V from it for
waiting sequences, and calls `settle` between two steps; nothing here waits for a disk. All methods
belong to the engine's thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from radixserve.cache.listing import Listing
from radixserve.cache.survey import Parts
from radixserve.declared import Numbers
from radixserve.prefix import Branch, Prefix
from radixserve.questions import Pin, ShowTree
from radixserve.step import Slots
from radixserve.tensors.kv import KV

COPY_SECONDS = 0.001  # how often a copy under way is polled while nothing else is to be done


@dataclass(slots=True)
class Found:
    """The answer to `Tier.match`: once it is `done`, the first `num_tokens` tokens are kept."""

    num_tokens: int = 0
    done: bool = False


@dataclass(slots=True)
class Load:
    """K/V that a tier reads. Once it is `done`, `kv` is K/V of `prefix` from position `depth` on,
    as far as there is any, or None. After `until`, in seconds of time.monotonic(), waiting for it
    costs more than computing. As soon as the tier knows, it has the first `num_found` tokens.
    """

    prefix: Prefix
    depth: int
    until: float
    kv: KV | None = None
    done: bool = False
    given_up: bool = False
    num_found: int | None = None

    def give_up(self) -> None:
        """The result is no longer needed: if the load has not begun, it is skipped."""
        self.given_up = True


@dataclass(slots=True)
class Dropping:
    """What `Tier.drop` and `Tier.drop_unused` come to. Once it is `done`, `num_tokens` tokens can
    not be found any more, whatever happens to this process.
    """

    num_tokens: int = 0
    done: bool = False


@dataclass(slots=True)
class Showing:
    """The answer to `Tier.show`. Once it is `done`, `listing` is the part of the tier's tree that
    was asked for, or None if its node is gone.
    """

    listing: Listing | None = None
    done: bool = False
    given_up: bool = False

    def give_up(self) -> None:
        """The answer is no longer needed: the tier stops looking."""
        self.given_up = True

    def worked_out(self, parts: Parts[Listing | None]) -> Iterator[None]:
        """Does `parts` one by one, and keeps what they come to. Ends when given up."""
        while not self.given_up:
            try:
                next(parts)
            except StopIteration as end:
                self.listing, self.done = end.value, True
                return
            yield


class Tier(Protocol):
    """K/V of prefixes below the device."""

    @property
    def name(self) -> str:
        """What metrics and usage call it; one of `radixserve.tiers.NAMES`."""

    @property
    def takes(self) -> Literal["computed", "evicted"]:
        """What it is offered: K/V that was computed, or K/V that the device is about to evict."""

    @property
    def patience(self) -> float | None:
        """How many seconds the engine may sleep while nothing can be computed: 0 if nothing is
        under way here, None if `fileno` will tell.
        """

    def fileno(self) -> int | None:
        """A file descriptor that is readable when `settle` has something to do; None if there is
        none.
        """

    def match(self, prefix: Prefix) -> Found:
        """How much of `prefix` is kept. Changes nothing, recency included. The answer is there at
        once, or after a later `settle`.
        """

    def fetch(self, prefix: Prefix, depth: int) -> Load:
        """Read K/V of `prefix` from position `depth` on. It is there at once, or after a later
        `settle`.
        """

    def offer(self, prefix: Prefix, slots: Slots) -> None:
        """Keep K/V of `prefix`, which is in these slots of the device, if there is room. Slots of
        evicted K/V may be overwritten after the call, by a step that is launched then.
        """

    def keep(self, pins: Sequence[Pin]) -> None:
        """Do not evict K/V of these pins, which is here or comes later, as far as the share of pins
        goes, the first ones before others. Those of an earlier call are let go.
        """

    def pins_left(self) -> list[Pin]:
        """The pins that an earlier server has left here, with the seconds until their ends. To be
        asked once, before the first `keep`.
        """

    def drop(self, branch: Branch) -> Dropping:
        """Forget the K/V of `branch`, also what was offered and is not kept yet. No later `match`
        or `fetch` finds it.
        """

    def drop_unused(self, namespaces: frozenset[str] | None, seconds: float) -> Dropping:
        """Forget what was not used for so long, in these namespaces (None: in all)."""

    def show(self, question: ShowTree) -> Showing:
        """List a part of what is kept. Changes nothing, recency included. A large tree is walked in
        parts, beside steps or between them. The answer is there after a later `settle`.
        """

    def prefilled(self, num_tokens: int, seconds: float) -> None:
        """Note how fast a step computed, to which reading can be compared."""

    def relent(self) -> bool:
        """Slots of the device are short: let go of some that are held here. False if there are
        none.
        """

    def settle(self) -> None:
        """To be called between two steps: finish what has arrived."""

    def numbers(self) -> Numbers:
        """What it counts, as declared in `tiers.counters` and by what it is made of."""

    def close(self, seconds: float) -> bool:
        """Keep what was offered, for at most `seconds`; False if that is not finished by then."""

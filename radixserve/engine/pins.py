"""Pins: prefixes that an operator wants to stay cached for a while.

A pin holds what is cached of its prefix by a lease, so that none of it is evicted, and takes the
lease again when a request has computed more. Together pins hold a share of the slots at most. A
request that fits only without them gets their room: pins give way, those that end first before
others, and hold their prefix again once a request has computed it.

Knows the cache and prefixes, no sequences. The front keeps the pins for the next engine.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from radixserve.cache.kvcache import KVCache, Lease
from radixserve.cache.radix import Node
from radixserve.declared import Numbers
from radixserve.engine.counters import PINNED_TOKENS
from radixserve.prefix import TOKEN_BYTES, Branch, Prefix
from radixserve.questions import Pin, Pinned, PinState

log = logging.getLogger(__name__)

MAX_PINS = 1024
MAX_WANTED = 1 << 22  # tokens of all pinned prefixes, cached or not: 16 MiB
_TOLD_SECONDS = 1.0  # by which an end moves before the front is told again
_FIRST_TOKENS = 12  # of a prefix, which are listed


@dataclass(slots=True, eq=False)
class _Held:
    """One pin. Without a lease it holds nothing."""

    id: str
    prefix: Prefix
    seconds: float
    renews: bool
    end: float  # by the clock of `Pins`
    told_end: float  # what the front knows
    hits: int = 0
    lease: Lease | None = None

    @property
    def num_held(self) -> int:
        return 0 if self.lease is None else self.lease.num_cached


class Pins:
    """The pins of one engine."""

    def __init__(
        self, cache: KVCache, most_tokens: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Together they hold at most `most_tokens` tokens; what pins share counts once."""
        self._cache, self._most, self._now = cache, most_tokens, now
        self._pins: dict[str, _Held] = {}
        self._num_tokens = 0
        self._next_end = math.inf
        self._changed: dict[str, float] = {}  # ends by id, which the front was not told of

    @property
    def patience(self) -> float | None:
        """Seconds until the next pin may end; None if there is none."""
        return max(0.0, self._next_end - self._now()) if self._pins else None

    def numbers(self) -> Numbers:
        """What it counts, as declared in `engine.counters`."""
        return {PINNED_TOKENS.key(): self._num_tokens}

    def states(self) -> list[PinState]:
        """All pins, those that end first before others."""
        self.expire()
        now = self._now()
        return [
            PinState(
                id=each.id,
                namespace=each.prefix.namespace,
                tokens=each.num_held,
                wanted=each.prefix.num_tokens,
                seconds_left=each.end - now,
                ttl=each.seconds if each.renews else None,
                hits=each.hits,
                first_tokens=_first(each.prefix),
            )
            for each in self._by_end()
        ]

    def nodes(self) -> set[Node]:
        """The nodes of the tree that pins hold."""
        return _paths(self._pins.values())

    # Pinning and releasing.

    def add(self, asked: Pin, prefix: Prefix) -> Pinned:
        """Pin `prefix`. One that is pinned already gets the new end, and keeps its id. O(pins)."""
        self.expire()
        refusal = self._refusal(prefix)
        if refusal is not None:
            return Pinned(status="refused", wanted=prefix.num_tokens, why=refusal)
        pin = next((each for each in self._pins.values() if each.prefix == prefix), None)
        if pin is None:
            pin = self._pins[asked.id] = _Held(asked.id, prefix, 0.0, False, 0.0, 0.0)
        pin.seconds, pin.renews = asked.seconds, asked.renews
        pin.end = pin.told_end = self._now() + (asked.seconds_left or asked.seconds)
        self._next_end = min(each.end for each in self._pins.values())
        return self._answer(pin, self._hold(pin))

    def _refusal(self, prefix: Prefix) -> str | None:
        """Why `prefix` cannot be pinned; None if it can."""
        if not self._cache.enabled:
            return "The cache is off."
        if self._most <= 0:
            return "The setting pin_share leaves nothing to pins."
        if any(each.prefix == prefix for each in self._pins.values()):
            return None
        if len(self._pins) >= MAX_PINS:
            return f"There are {MAX_PINS:,} pins, which is the most."
        wanted = sum(each.prefix.num_tokens for each in self._pins.values())
        if wanted + prefix.num_tokens > MAX_WANTED:
            return f"All pinned prefixes together may have {MAX_WANTED:,} tokens."
        if self._num_tokens >= self._most:
            return f"Pins hold all {self._most:,} tokens that the setting pin_share gives them."
        return None

    def _answer(self, pin: _Held, clipped: int) -> Pinned:
        missing = pin.prefix.num_tokens - pin.num_held - clipped
        why = []
        if clipped:
            why.append(f"All pins together may hold {self._most:,} tokens (setting pin_share).")
        if missing:
            why.append(f"{missing:,} tokens are not cached; they are held once they are computed.")
        return Pinned(
            id=pin.id,
            status="clipped" if clipped else "accepted",
            tokens=pin.num_held,
            wanted=pin.prefix.num_tokens,
            why=" ".join(why),
            seconds_left=pin.end - self._now(),
        )

    def _hold(self, pin: _Held) -> int:
        """Hold what is cached of a pin now, within the share; returns how many tokens of it are
        left out because of the share.
        """
        before, pin.lease = pin.lease, None
        if self._cache.match(pin.prefix):
            pin.lease = self._cache.hold(pin.prefix)
        if before is not None:
            before.release()
        excess = self._count() - self._most
        if excess <= 0:
            return 0
        kept = max(0, pin.num_held - excess)
        assert pin.lease is not None, "what exceeds the share is held"
        pin.lease.release()
        pin.lease = self._cache.hold(pin.prefix.first(kept)) if kept else None
        self._count()
        return pin.prefix.num_tokens - kept

    def remove(self, pin_id: str) -> int | None:
        """End a pin; how many tokens it held, None if there is no such pin."""
        self.expire()
        pin = self._pins.get(pin_id)
        if pin is None:
            return None
        num_held = pin.num_held
        self._end([pin])
        return num_held

    def dropped(self, branch: Branch) -> None:
        """`branch` was dropped from the cache: its pins end."""
        self._end([each for each in self._pins.values() if _is_dropped(each, branch)])

    def expire(self) -> None:
        """End the pins whose time is over. To be called often; O(1) if there are none."""
        now = self._now()
        if now < self._next_end:
            return
        over = [each for each in self._pins.values() if each.end <= now]
        for each in over:
            log.info("pin %s of %d tokens ended", each.id, each.num_held)
        self._end(over)

    def _end(self, pins: list[_Held]) -> None:
        for each in pins:
            del self._pins[each.id]
            self._changed[each.id] = -math.inf
            if each.lease is not None:
                each.lease.release()
        self._next_end = min((each.end for each in self._pins.values()), default=math.inf)
        self._count()

    # Requests.

    def served(self, prompt: Prefix) -> None:
        """A request has computed or found all K/V of `prompt`: pins that it begins with are
        renewed, and hold what is new of them. O(pins).
        """
        for pin in self._pins.values():
            if pin.prefix.namespace != prompt.namespace:
                continue
            if prompt.tokens.startswith(pin.prefix.tokens):
                self._renew(pin)
            if pin.num_held < pin.prefix.num_tokens and _reaches(prompt, pin):
                self._hold(pin)

    def _renew(self, pin: _Held) -> None:
        pin.hits += 1
        if pin.renews:
            pin.end = self._now() + pin.seconds
        if pin.end - pin.told_end >= _TOLD_SECONDS:
            pin.told_end = self._changed[pin.id] = pin.end

    def relent(self) -> bool:
        """Slots are short: let go of what the pin holds that ends first. False if none holds
        anything.
        """
        pin = next((each for each in self._by_end() if each.lease is not None), None)
        if pin is None or pin.lease is None:
            return False
        log.warning("pin %s of %d tokens gives way to a request", pin.id, pin.num_held)
        pin.lease.release()
        pin.lease = None
        self._count()
        return True

    def changes(self) -> dict[str, float]:
        """For the front: the seconds until the end of each pin that was renewed since the last
        call, 0 for those that have ended.
        """
        if not self._changed:
            return {}
        changed, self._changed = self._changed, {}
        now = self._now()
        return {name: max(0.0, end - now) for name, end in changed.items()}

    # Counting.

    def _by_end(self) -> list[_Held]:
        return sorted(self._pins.values(), key=lambda each: each.end)

    def _count(self) -> int:
        """Count the tokens that are held. The nodes that pins hold do not grow, so this changes
        only with leases of pins. O(nodes held).
        """
        self._num_tokens = sum(node.num_tokens for node in self.nodes())
        return self._num_tokens


def _paths(pins: Iterable[_Held]) -> set[Node]:
    nodes: set[Node] = set()
    for pin in pins:
        node = None if pin.lease is None else pin.lease.node
        while node is not None and node not in nodes:
            nodes.add(node)
            node = node.parent
    return nodes


def _is_dropped(pin: _Held, branch: Branch) -> bool:
    return branch.covers(pin.prefix) or (pin.lease is not None and pin.lease.is_withheld)


def _reaches(prompt: Prefix, pin: _Held) -> bool:
    """Whether `prompt` has more of the pinned prefix than the pin holds."""
    more = pin.num_held + 1
    return prompt.num_tokens >= more and prompt.first(more).tokens == pin.prefix.first(more).tokens


def _first(prefix: Prefix) -> list[int]:
    return memoryview(prefix.tokens[: _FIRST_TOKENS * TOKEN_BYTES]).cast("i").tolist()

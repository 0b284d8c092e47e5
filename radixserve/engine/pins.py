"""Pins: prefixes that an operator or a request wants to stay cached for a while.

A pin holds what is cached of its prefix by a lease, so that none of it is evicted, and takes the
lease again when a request has computed more. Together pins hold a share of the slots at most, and
those that one tenant's requests asked for a smaller one. Where that is not enough for a new pin,
older ones that requests asked for end, least recently used first: of the same tenant for another
request's pin, of any tenant for an operator's. An operator's pin never ends for another.

A request that fits only without pins gets their room: pins give way, and hold their prefix again
once a request has computed it.

Knows the cache and prefixes, no sequences. The front keeps the pins for the next engine.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable

import msgspec

from radixserve.cache.kvcache import KVCache, Lease
from radixserve.declared import Numbers
from radixserve.engine.counters import PINNED_TOKENS
from radixserve.engine.held_pin import HeldPin, nodes_held, num_states_of, num_tokens_of
from radixserve.messages import PinChanges
from radixserve.prefix import Branch, Prefix
from radixserve.questions import Pin, Pinned, PinState
from radixserve.request import PinWish, Request
from radixserve.step import PinOutcome

log = logging.getLogger(__name__)

MAX_PINS = 1024
MAX_OF_TENANT = 64  # that its requests asked for
MAX_WANTED = 1 << 22  # tokens of all pinned prefixes, cached or not: 16 MiB
_TOLD_SECONDS = 1.0  # by which an end moves before the front is told again
# how often tiers are told at most: that pins were made or have ended, that ends have moved
_TIERS_SECONDS, _TIERS_MOVED_SECONDS = 1.0, 30.0


class Pins:
    """The pins of one engine."""

    def __init__(
        self,
        cache: KVCache,
        most_tokens: int,
        request_share: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Together they hold at most `most_tokens` tokens, and those of one tenant's requests
        `request_share` of all slots or of the tenant's quota; what pins share counts once. Of
        state slots they hold the same shares at most: each counts as the tokens for which there is
        one.
        """
        self._cache, self._most, self._request_share = cache, most_tokens, request_share
        self._now = now
        self._pins: dict[str, HeldPin] = {}  # the least recently used first
        self._num_tokens = 0
        self._num_counted = 0  # tokens against `most_tokens`
        self._held_moved = False  # since the front was told what pins hold
        self._next_end = math.inf
        self._made: dict[str, HeldPin] = {}  # which the front was not told of
        self._changed: dict[str, float] = {}  # ends by id, the same
        self._tiers_told_at = -math.inf
        self._tell_tiers_at = math.inf

    def limit(self, most_tokens: int) -> None:
        """Let pins hold at most `most_tokens` tokens from now on: if they hold more, some let go,
        in the order of `relent`.
        """
        self._most = most_tokens
        while self._num_counted > most_tokens and self.relent():
            pass

    @property
    def patience(self) -> float | None:
        """Seconds until the next pin may end, or tiers have to be told; None: never."""
        soonest = min(self._next_end, self._tell_tiers_at)
        return None if soonest == math.inf else max(0.0, soonest - self._now())

    @property
    def num_tokens(self) -> int:
        """Tokens that pins hold; what several hold counts once."""
        return self._num_tokens

    def numbers(self) -> Numbers:
        """What it counts, as declared in `engine.counters`."""
        return {PINNED_TOKENS.key(): self._num_tokens}

    def states(self) -> list[PinState]:
        """All pins, those that end first before others."""
        self.expire()
        now = self._now()
        return [each.state(now) for each in sorted(self._pins.values(), key=lambda pin: pin.end)]

    def leases(self) -> list[Lease]:
        """What pins hold."""
        return [each.lease for each in self._pins.values() if each.lease is not None]

    # Pinning and releasing.

    def add(self, asked: Pin, prefix: Prefix) -> Pinned:
        """Pin `prefix`. What is pinned already for the same tenant, or by operators, gets the new
        end and keeps its id. O(pins).
        """
        self.expire()
        wanted, pin = prefix.num_tokens, self._find(prefix, asked.tenant)
        refusal = self._refusal(asked, prefix) if pin is None else None
        if refusal is not None:
            return Pinned(status="refused", wanted=wanted, why=refusal)
        end = self._now() + (asked.seconds_left or asked.seconds)
        if pin is None:
            pin = HeldPin(asked, prefix, end, end)
        pin.asked = msgspec.structs.replace(asked, id=pin.id)
        pin.end = pin.told_end = end
        self._pins.pop(pin.id, None)
        self._pins[pin.id] = self._made[pin.id] = pin
        self._changed.pop(pin.id, None)
        self._next_end = min(each.end for each in self._pins.values())
        self._news_for_tiers(_TIERS_SECONDS)
        return self._answer(pin, wanted, self._hold(pin))

    def _find(self, prefix: Prefix, tenant: str | None) -> HeldPin | None:
        pins = self._pins.values()
        return next((e for e in pins if e.prefix == prefix and e.tenant == tenant), None)

    def _refusal(self, asked: Pin, prefix: Prefix) -> str | None:
        """Why `prefix` cannot be pinned anew; None if it can. Makes room in number, not in
        slots.
        """
        if not self._cache.enabled:
            return "The cache is off."
        if self._most_of(asked) < self._least:
            return "The settings pin_share and request_pin_share leave nothing to this pin."
        while (reason := self._too_many(asked.tenant, prefix)) is not None:
            if not self._displace(asked.tenant):
                return reason
        is_full = self._num_counted + self._least > self._most
        if asked.tenant is None and is_full and not self._displace(None):
            return f"Pins hold all {self._most:,} tokens that the setting pin_share gives them."
        return None

    def _too_many(self, tenant: str | None, prefix: Prefix) -> str | None:
        pins = self._pins.values()
        if len(pins) >= MAX_PINS:
            return f"There are {MAX_PINS:,} pins, which is the most."
        if tenant is not None and sum(each.tenant == tenant for each in pins) >= MAX_OF_TENANT:
            return f"There are {MAX_OF_TENANT} pins of this tenant's requests, which is the most."
        if sum(each.prefix.num_tokens for each in pins) + prefix.num_tokens > MAX_WANTED:
            return f"All pinned prefixes together may have {MAX_WANTED:,} tokens."
        return None

    def _displace(self, tenant: str | None, kept: HeldPin | None = None) -> bool:
        """End the least recently used pin that gives way to one of `tenant`, but not `kept`. False
        if there is none.
        """
        for each in self._pins.values():
            gives_way = each.tenant is not None and tenant in (None, each.tenant)
            if gives_way and each is not kept:
                self._end([each])
                return True
        return False

    def _most_of(self, asked: Pin) -> int:
        """How many tokens the pins of the same tenant's requests may hold; an operator's: all
        pins.
        """
        if asked.tenant is None:
            return self._most
        of = self._cache.slots.in_slots(asked.kv_quota) or self._cache.slots.budget
        return min(self._most, int(self._request_share * of))

    def _answer(self, pin: HeldPin, wanted: int, clipped: int) -> Pinned:
        missing = wanted - pin.num_held - clipped
        why = []
        if clipped:
            setting = "pin_share" if pin.tenant is None else "request_pin_share"
            most = self._most_of(pin.asked)
            why.append(f"All pins together may hold {most:,} tokens (setting {setting}).")
        if missing:
            why.append(f"{missing:,} tokens are not cached; they are held once they are computed.")
        return Pinned(
            id=pin.id,
            status="clipped" if clipped else "accepted",
            tokens=pin.num_held,
            wanted=wanted,
            why=" ".join(why),
            seconds_left=pin.end - self._now(),
        )

    def _hold(self, pin: HeldPin) -> int:
        """Hold what is cached of a pin now, within the shares, for which others may end; returns
        how many tokens of it are left out because of the shares.
        """
        most, before = self._most_of(pin.asked), pin.lease
        could_hold = min(self._cache.match(pin.prefix), most)
        pin.lease = self._cache.hold(pin.prefix.first(could_hold)) if could_hold else None
        if before is not None:
            before.release()
        self._count()
        excess = self._excess(pin)
        while excess > 0 and self._displace(pin.tenant, kept=pin):
            excess = self._excess(pin)
        kept = max(0, pin.num_held - max(0, excess))
        if kept < pin.num_held:
            self._hold_first(pin, kept)
        if excess > 0 and self._excess(pin) > 0:  # of states: a shorter pin holds as many
            kept = 0
            self._hold_first(pin, kept)
        for node in nodes_held([pin]):
            node.expired = False
        return max(0, pin.prefix.num_tokens - (kept if excess > 0 else most))

    def _hold_first(self, pin: HeldPin, num_tokens: int) -> None:
        """Hold only so many tokens of a pin, as far as they are cached."""
        pin.let_go()
        pin.lease = self._cache.hold(pin.prefix.first(num_tokens)) if num_tokens else None
        self._count()

    def _excess(self, pin: HeldPin) -> int:
        """By how many tokens all pins, or those of the same tenant's requests, exceed a share."""
        of_all = self._num_counted - self._most
        if pin.tenant is None:
            return of_all
        same = [each for each in self._pins.values() if each.tenant == pin.tenant]
        return max(of_all, self._counted(same) - self._most_of(pin.asked))

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
        self._end([each for each in self._pins.values() if each.is_dropped_with(branch)])

    def expire(self) -> None:
        """End the pins whose time is over. To be called often; O(1) if there are none."""
        now = self._now()
        if now < self._next_end:
            return
        over = [each for each in self._pins.values() if each.end <= now]
        held = nodes_held(over)
        for each in over:
            log.info("pin %s of %d tokens ended", each.id, each.num_held)
        self._end(over)
        for node in held - nodes_held(self._pins.values()):
            node.expired = True

    def _end(self, pins: Iterable[HeldPin]) -> None:
        for each in pins:
            del self._pins[each.id]
            self._made.pop(each.id, None)
            self._changed[each.id] = -math.inf
            each.let_go()
            self._news_for_tiers(_TIERS_SECONDS)
        self._next_end = min((each.end for each in self._pins.values()), default=math.inf)
        self._count()

    # Requests.

    def add_wishes(self, request: Request, prompt: Prefix) -> tuple[PinOutcome, ...]:
        """Pin what a request wishes of its `prompt`, all K/V of which is there."""
        return tuple(self._add_wish(each, request, prompt) for each in request.pins)

    def _add_wish(self, wish: PinWish, request: Request, prompt: Prefix) -> PinOutcome:
        prefix = prompt.first(min(wish.num_tokens, self._cache.match(prompt)))
        if not (prefix.num_tokens and request.keeps_cache):
            return PinOutcome("refused", 0)
        asked = Pin(
            id=wish.id,
            seconds=wish.seconds,
            renews=True,
            tenant=request.tenant,
            kv_quota=request.kv_quota,
            num_wanted=wish.num_tokens,
        )
        self._end_shorter(asked, prefix)
        told = self.add(asked, prefix)
        if told.id and not told.tokens:
            self.remove(told.id)
        elif told.tokens < prefix.num_tokens and told.id:
            self._pins[told.id].prefix = prefix.first(told.tokens)
        if not told.tokens:
            return PinOutcome("refused", 0)
        return PinOutcome("accepted" if told.tokens == wish.num_tokens else "clipped", told.tokens)

    def _end_shorter(self, asked: Pin, prefix: Prefix) -> None:
        """End the pins of the same tenant's requests that this one makes superfluous: a
        conversation that grows has one pin, not one for each turn.
        """
        end = self._now() + asked.seconds
        self._end(
            [
                each
                for each in self._pins.values()
                if each.tenant == asked.tenant
                and each.end <= end
                and each.prefix.num_tokens < prefix.num_tokens
                and prefix.first(each.prefix.num_tokens) == each.prefix
            ]
        )

    def served(self, prompt: Prefix, *, renews: bool = True) -> None:
        """A request has computed or found all K/V of `prompt`: pins that it begins with are
        renewed if it `renews` pins, and hold what is new of them. O(pins).
        """
        for pin in list(self._pins.values()):
            if pin.id not in self._pins:
                continue  # it has ended for another one
            if renews and prompt.begins_with(pin.prefix):
                self._renew(pin)
            if pin.num_held != self._most_of(pin.asked) and pin.lacks_what_is_in(prompt):
                self._hold(pin)

    def _renew(self, pin: HeldPin) -> None:
        pin.hits += 1
        self._pins[pin.id] = self._pins.pop(pin.id)
        if pin.asked.renews:
            pin.end = self._now() + pin.asked.seconds
            self._news_for_tiers(_TIERS_MOVED_SECONDS)
        if pin.end - pin.told_end >= _TOLD_SECONDS:
            pin.told_end = self._changed[pin.id] = pin.end

    def relent(self) -> bool:
        """Slots are short: let go of what one pin holds, those of requests before those of
        operators, and among these the one that ends first. False if none holds anything.
        """
        holding = [each for each in self._pins.values() if each.lease is not None]
        pin = min(holding, key=lambda each: (each.tenant is None, each.end), default=None)
        if pin is None:
            return False
        log.warning("pin %s of %d tokens gives way, because slots are short", pin.id, pin.num_held)
        pin.let_go()
        self._count()
        return True

    def changes(self) -> PinChanges | None:
        """For the front: what became of pins since the last call; None if nothing did."""
        held = self._held_news()
        if not (self._changed or self._made or held):
            return None
        made, self._made = self._made, {}
        changed, self._changed = self._changed, {}
        now = self._now()
        return PinChanges(
            made=[each.wish(now) for each in made.values()],
            seconds={name: max(0.0, end - now) for name, end in changed.items()},
            held=held,
        )

    def _held_news(self) -> dict[str, int]:
        """The tokens that pins hold, where the front knows another number."""
        if not self._held_moved:
            return {}
        self._held_moved, news = False, {}
        for each in self._pins.values():
            if each.num_held != each.told_held:
                news[each.id] = each.told_held = each.num_held
        return news

    # The tiers below.

    def _news_for_tiers(self, patience: float) -> None:
        """They are to be told, at least `patience` seconds after they were told last."""
        due = max(self._now(), self._tiers_told_at + patience)
        self._tell_tiers_at = min(self._tell_tiers_at, due)

    def for_tiers(self, *, at_once: bool = False) -> list[Pin] | None:
        """All pins, those of operators before others and then the last used first, if it is time to
        tell the tiers below of them, or with `at_once` if there is anything to tell; else None.
        """
        now = self._now()
        if now < self._tell_tiers_at and not (at_once and self._tell_tiers_at < math.inf):
            return None
        self._tiers_told_at, self._tell_tiers_at = now, math.inf
        last_used_first = [*reversed(self._pins.values())]
        last_used_first.sort(key=lambda pin: pin.tenant is not None)
        return [each.wish(now) for each in last_used_first]

    def _count(self) -> None:
        """Count the tokens that are held. The nodes that pins hold do not grow, so this changes
        only with leases of pins. O(nodes held).
        """
        self._num_tokens = num_tokens_of(self._pins.values())
        self._num_counted = self._counted(self._pins.values())
        self._held_moved = True

    @property
    def _least(self) -> int:
        """As how many tokens a pin counts at least."""
        return max(1, self._cache.slots_per_state)

    def _counted(self, pins: Collection[HeldPin]) -> int:
        """As how many tokens `pins` count together against the shares."""
        tokens, per_state = num_tokens_of(pins), self._cache.slots_per_state
        return max(tokens, num_states_of(pins) * per_state) if per_state else tokens

"""The random walk over the cache, with layers that attend a window: which tokens have window slots
is read from the cache, and what follows from that is told by brute force.

`window_content` plays the tensors of these layers. A chunk may be computed only if the windows of
its rows hold what they should.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from radixserve.cache import kvcache, windows
from radixserve.cache.policies.policy import Policy
from tests.cache.machine import WHICH, CacheMachine, Running, Token, path, tokens_in
from tests.public_prefixes import public_part

WINDOW, NUM_WINDOW_SLOTS, LEAST = 4, 16, 9
REACH = WINDOW - 1


class WindowMachine(CacheMachine):
    windows_type = windows.WindowSlots

    def make_cache(self, num_slots: int, policy: Policy) -> kvcache.KVCache:
        self.windows = self.windows_type(num_slots, NUM_WINDOW_SLOTS, WINDOW, least=LEAST)
        self.windows.stride = 2
        self.window_content: dict[int, Token] = {}
        return self.cache_type(num_slots, enabled=self.enabled, policy=policy, second=self.windows)

    # What the model says.

    def cached(self, namespace: str, tokens: list[int], most: int = 1 << 30) -> int:
        """The longest prefix that is cached and whose last tokens have window slots."""
        there, slots = super().cached(namespace, tokens, most), tokens_in(self.cache)
        tokens_there = path(namespace, public_part(namespace, tokens), tokens)[:there]
        has = [self.windows.of[slots[each]] >= 0 for each in tokens_there]
        return max(n for n in range(there + 1) if all(has[max(0, n - REACH) : n]))

    def held(self) -> set[int]:
        """The window slots that running sequences hold."""
        slots = [slot for each in self.running for slot in each.lease.held.tolist()]
        return {int(self.windows.of[slot]) for slot in slots}

    def num_available(self, besides: set[int]) -> int:
        return self.windows.allocator.num_slots - len(self.held() | besides)

    def has_windows(self, namespace: str, tokens: list[int], hit: int, own: int) -> bool:
        slots = tokens_in(self.cache)
        num_public = public_part(namespace, tokens)
        last = path(namespace, num_public, tokens)[max(0, hit - REACH) : hit]
        return min(own, WINDOW) <= self.num_available(
            {int(self.windows.of[slots[e]]) for e in last}
        )

    def picture(self) -> object:
        return super().picture(), self.windows.of.tolist(), self.windows.num_held

    # What can happen.

    def compute(self, each: Running, stop: int) -> int:
        lease, before = each.lease, self.held()
        own = {int(self.windows.of[slot]) for slot in lease.held.tolist()}
        if not lease.cover(each.computed, stop):
            needed = stop - each.computed
            assert needed > self.windows.num_available, "there were window slots"
            return each.computed
        needed = lease.slots[max(0, each.computed - REACH) : stop].tolist()
        assert set(needed) <= set(lease.held.tolist()), "what rows need is not held"
        assert before - own <= self.held(), "a window slot of another lease was taken"
        tokens = each.prefixes(stop)
        for position in range(max(0, each.computed - REACH), stop):
            place = int(self.windows.of[lease.slots[position]])
            if position < each.computed:
                found = self.window_content.get(place)
                assert found == tokens[position], "a row sees K/V of something else"
            else:
                self.window_content[place] = tokens[position]
        return stop

    @precondition(lambda self: self.running)
    @rule(which=WHICH, ahead=st.integers(1, 3))
    def guess(self, which: int, ahead: int) -> None:
        """Rows behind the known tokens are computed, and turn out to be wrong."""
        each = self.pick(which)
        start, stop = each.computed, min(each.computed + ahead, len(each.lease.slots))
        if each.lease.cover(start, stop):
            for slot in each.lease.slots[start:stop].tolist():
                self.window_content[int(self.windows.of[slot])] = ("wrong", 0, ())

    @rule(less=st.integers(0, 30), most=st.integers(1, 9))
    def move_windows_down(self, less: int, most: int) -> None:
        """The budget shrinks, and window slots move away from the end of the pool, if no lease
        holds them.
        """
        self.resize(max(1, self.num_slots - less))
        edge, held = self.windows.allocator.num_slots, self.held()
        sources, targets = self.windows.move_down(most)
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
            assert target < edge <= source, "K/V moves up"
            assert source not in held, "K/V moves that a lease holds"
            self.window_content[target] = self.window_content[source]

    # What always holds.

    @invariant()
    def every_window_slot_holds_what_its_token_thinks(self) -> None:
        for each, slot in tokens_in(self.cache).items():
            place = int(self.windows.of[slot])
            assert place < 0 or self.window_content.get(place) == each, (
                "a window slot holds something else"
            )

    @invariant()
    def the_window_slots_are_within_the_budget(self) -> None:
        share = NUM_WINDOW_SLOTS * self.budget // self.capacity
        assert self.windows.budget == max(LEAST, share), "the share of window slots is off"
        over = self.windows.allocator.num_slots - self.windows.budget
        assert over <= max(0, len(self.held()) - self.windows.budget), "too many are in use"

    @invariant()
    def the_bytes_are_those_of_the_slots(self) -> None:
        in_tree = tokens_in(self.cache).values()
        detached = [n for n in self.detached() if n.num_tokens]
        states = self.cache.bytes()
        if not detached:
            cached = sum(self.windows.of[slot] >= 0 for slot in in_tree)
            assert states["cached"] == len(in_tree) + cached, "cached bytes are miscounted"
        assert states["budget"] == states["free"] + states["used"]
        assert states["used"] == states["leased"] + states["evictable"]

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "cache"):
            assert (self.windows.of < 0).all(), "a token that is gone has a window slot"
            assert self.windows.allocator.free_runs() == [(0, NUM_WINDOW_SLOTS)]

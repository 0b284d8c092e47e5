"""The random walk over the cache, with layers that have a state: where states are kept is read from
the cache, and what follows from that is told by brute force.

`state_content` plays the tensors: the sequence whose state is in a state slot. A chunk may be
computed only from the state of what is before it.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from radixserve.cache import kvcache, states
from radixserve.cache.policies.policy import Policy
from radixserve.step import StatePart
from tests.cache.machine import WHICH, CacheMachine, Running, Token, path, tokens_in
from tests.public_prefixes import public_part

NUM_STATE_SLOTS, EVERY = 12, 5


class StateMachine(CacheMachine):
    states_type = states.StateSlots

    def make_cache(self, num_slots: int, policy: Policy) -> kvcache.KVCache:
        self.states = self.states_type(num_slots, NUM_STATE_SLOTS, EVERY)
        self.state_content: dict[int, Token | None] = {}
        return self.cache_type(num_slots, enabled=self.enabled, policy=policy, second=self.states)

    # What the model says.

    def cached(self, namespace: str, tokens: list[int], most: int = 1 << 30) -> int:
        """The longest prefix that is cached and behind which a state is kept."""
        there, slots = super().cached(namespace, tokens, most), tokens_in(self.cache)
        tokens_there = path(namespace, public_part(namespace, tokens), tokens)[:there]
        kept = [i + 1 for i, each in enumerate(tokens_there) if self.states.of[slots[each]] >= 0]
        return max(kept, default=0)

    def held(self) -> set[int]:
        """The state slots that running sequences hold."""
        return {place for each in self.running for place in each.lease.held.tolist()}

    def has_windows(self, namespace: str, tokens: list[int], hit: int, own: int) -> bool:
        slots, held = tokens_in(self.cache), self.held()
        if hit:
            end = path(namespace, public_part(namespace, tokens), tokens)[hit - 1]
            held.add(int(self.states.of[slots[end]]))
        return not own or len(held) < self.states.allocator.num_slots

    def picture(self) -> object:
        return super().picture(), self.states.of.tolist(), self.states.num_held

    # What can happen.

    def plan(self, each: Running, stop: int) -> tuple[StatePart, ...]:
        """The parts of the next chunk, none if there are no state slots. What they write is not
        known yet.
        """
        others = self.held() - set(each.lease.held.tolist())
        if stop == each.computed:
            return ()
        if not each.lease.cover(each.computed, stop):
            held = len(self.held())
            assert held >= self.states.allocator.num_slots, "there were state slots"
            return ()
        parts = each.lease.plan_states(each.computed, stop)
        assert [part.source for part in parts[1:]] == [part.target for part in parts[:-1]]
        for part in parts:
            assert part.target not in others, "a state is written that another lease holds"
            assert not self.states.is_kept(part.target), "a state is written that is kept"
            self.state_content[part.target] = None
        return parts

    def compute(self, each: Running, stop: int) -> int:
        parts = self.plan(each, stop)
        if not parts:
            return each.computed
        tokens = each.prefixes(stop)
        before = tokens[each.computed - 1] if each.computed else None
        found = self.state_content[parts[0].source] if parts[0].source >= 0 else None
        assert found == before, "a row follows the state of something else"
        assert (parts[0].source < 0) == (each.computed == 0)
        for part in parts:
            self.state_content[part.target] = tokens[part.stop - 1]
        each.lease.reach(stop)
        return stop

    @precondition(lambda self: self.running)
    @rule(which=WHICH, chunk=st.integers(1, 8))
    def fail(self, which: int, chunk: int) -> None:
        """A step does not come to an end: what it wrote is rubbish."""
        each = self.pick(which)
        self.plan(each, min(each.computed + chunk, len(each.tokens), len(each.lease.slots)))

    @rule(less=st.integers(0, 30), most=st.integers(1, 9))
    def move_states_down(self, less: int, most: int) -> None:
        """The budget shrinks, and state slots move away from the end of the pool, if no lease holds
        them.
        """
        self.resize(max(1, self.num_slots - less))
        edge, held = self.states.allocator.num_slots, self.held()
        sources, targets = self.states.move_down(most)
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
            assert target < edge <= source, "a state moves up"
            assert source not in held, "a state moves that a lease holds"
            self.state_content[target] = self.state_content[source]

    # What always holds.

    @invariant()
    def every_kept_state_is_that_of_its_token(self) -> None:
        for each, slot in tokens_in(self.cache).items():
            place = int(self.states.of[slot])
            assert place < 0 or self.state_content.get(place) == each, "a state is another's"

    @invariant()
    def the_state_slots_are_within_the_budget(self) -> None:
        share = NUM_STATE_SLOTS * self.budget // self.capacity
        assert self.states.budget == max(states.LEAST, share), "the share of state slots is off"
        over = self.states.allocator.num_slots - self.states.budget
        assert over <= max(0, len(self.held()) - self.states.budget), "too many are in use"

    @invariant()
    def the_bytes_are_those_of_the_slots(self) -> None:
        bytes_ = self.cache.bytes()
        if not any(node.num_tokens for node in self.detached()):
            in_tree = tokens_in(self.cache).values()
            cached = sum(self.states.of[slot] >= 0 for slot in in_tree)
            assert bytes_["cached"] == len(in_tree) + cached, "cached bytes are miscounted"
        assert bytes_["budget"] == bytes_["free"] + bytes_["used"]
        assert bytes_["used"] == bytes_["leased"] + bytes_["evictable"]

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "cache"):
            assert (self.states.of < 0).all(), "a token that is gone has a state"
            assert self.states.allocator.free_runs() == [(0, NUM_STATE_SLOTS)]

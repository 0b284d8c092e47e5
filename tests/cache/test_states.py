"""State slots: the random walk, which states are kept, and which go first."""

from __future__ import annotations

import sys

import pytest
from hypothesis.stateful import run_state_machine_as_test

from radixserve.cache.kvcache import KVCache
from radixserve.cache.states import StateSlots
from radixserve.prefix import Prefix
from tests.cache.changed import load_changed
from tests.cache.state_machine import StateMachine
from tests.cache.test_machine import SHORTER
from tests.hunt import HUNT

TestStates = StateMachine.TestCase
TestStates.settings = SHORTER

BUGS = {
    "a prefix is servable where there is no state": (
        "return int(kept[-1]) + 1 if",
        "return int(kept[-1]) + 2 if",
    ),
    "a hit does not hold its state": ("            states.hold(self._place)\n", ""),
    "a state that is kept is written again": (
        "if before is not None and states.is_kept(before):",
        "if False:",
    ),
    "states inside of a step are not chained": (
        "(place for _, place in self._kept)]",
        "(-1 for _, place in self._kept)]",
    ),
    "a failed plan keeps its slots": (
        "            self._states.let_go(place)\n        self._kept = []",
        "            pass\n        self._kept = []",
    ),
    "what is kept is that of the next token": ("int(slots[at - 1])", "int(slots[at])"),
    "duplicates keep their states": (
        "        self.of[self._slot_of[places]], self._slot_of[places] = -1, -1\n",
        "",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_the_machine_catches(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load_changed("states", *BUGS[bug], monkeypatch)
    members = {
        "states_type": sys.modules["radixserve.cache.states"].StateSlots,
        "cache_type": sys.modules["radixserve.cache.kvcache"].KVCache,
        "compaction_type": sys.modules["radixserve.cache.compaction"].Compaction,
        "policy": staticmethod(sys.modules["radixserve.cache.policies.table"].POLICIES["lru"]),
    }
    machine = type("Changed", (StateMachine,), members)
    with pytest.raises((AssertionError, KeyError, IndexError)):
        run_state_machine_as_test(machine, settings=HUNT)


class Served:
    """A cache of states in which whole prompts are computed, in steps of `step` tokens."""

    def __init__(self, num_state_slots: int, every: int = 1000) -> None:
        self.states = StateSlots(4096, num_state_slots, every)
        self.cache = KVCache(4096, second=self.states)

    def serve(self, prompt: list[int], step: int = 1 << 30) -> int:
        """How many tokens were hit."""
        prefix = Prefix.of("", prompt)
        lease = self.cache.lease(prefix, len(prompt))
        assert lease is not None
        with lease:
            start = lease.num_cached
            while start < len(prompt):
                stop = min(start + step, len(prompt))
                assert lease.cover(start, stop)
                lease.plan_states(start, stop)
                lease.reach(stop)
                start = stop
            lease.publish(prefix)
            self.cache.check()
            return lease.num_cached

    def match(self, prompt: list[int]) -> int:
        return self.cache.match(Prefix.of("", prompt))


SHARED = list(range(100))


def test_the_same_prompt_and_a_longer_one_hit_all_of_it() -> None:
    served = Served(16)
    assert served.serve(SHARED) == 0
    assert served.serve(SHARED) == 99
    assert served.serve([*SHARED, 7, 8]) == 100


def test_the_third_prompt_with_a_common_beginning_hits_where_they_part() -> None:
    """The second one finds where it leaves the first, and keeps a state there."""
    served = Served(16)
    assert [served.serve([*SHARED[:60], 200 + n, 1]) for n in range(4)] == [0, 0, 60, 60]


def test_states_are_kept_every_so_many_tokens() -> None:
    served = Served(16, every=32)
    served.serve(SHARED, step=50)
    hits = [served.match(SHARED[:cut]) for cut in (31, 32, 50, 95, 96, 98, 99, 100)]
    assert hits == [0, 32, 32, 64, 96, 96, 99, 100]


def test_states_at_ends_stay_longer_than_those_inside() -> None:
    served = Served(8, every=16)
    for n in range(3):
        served.serve([n, *SHARED])
    assert [served.match([n, *SHARED]) for n in range(3)] == [101] * 3
    assert served.match([2, *SHARED[:50]]) <= 48

"""Window slots: the random walk, and bugs that it catches."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis.stateful import run_state_machine_as_test

from radixserve.cache import windows
from tests.cache.changed import load_changed
from tests.cache.test_machine import SHORTER
from tests.cache.window_machine import WindowMachine
from tests.hunt import HUNT

TestWindows = WindowMachine.TestCase
TestWindows.settings = SHORTER

BUGS = {
    "a hit looks one token less far back": (
        "self.reach = window, window - 1",
        "self.reach = window, window - 2",
    ),
    "a prefix is servable behind a window with a hole": (
        "serves = ends - starts >= self.reach",
        "serves = ends - starts >= 1",
    ),
    "the beginning of a sequence needs a whole window": ("        serves[0] = True\n", ""),
    "idle slots are counted without those that are held": (
        "return self.allocator.num_slots - self.num_held",
        "return self.allocator.num_slots",
    ),
    "a slot that is held is given back": (
        "is_idle = (self._slot_of >= 0) & (self._holds == 0)",
        "is_idle = self._slot_of >= 0",
    ),
    "a second hold does not count": ("        self._holds[places] += 1\n", ""),
    "letting go counts what others hold": (
        "        self.num_held -= len(idle)\n",
        "        self.num_held -= len(places)\n",
    ),
    "duplicates keep their window slots": ("        self.follow(ours[moves], theirs[moves])\n", ""),
    "a hold does not pass to the token that stays": (
        "        self._holds[kept] += self._holds[mine]\n",
        "",
    ),
    "a token that moves leaves its window slot behind": (
        "        self._slot_of[places[places >= 0]] = targets[places >= 0]\n",
        "",
    ),
    "a slot that is freed keeps its window slot": (
        "            if len(places):\n                self._free(places)\n",
        "",
    ),
    "growing gives nothing back": (
        "            self.allocator.give_back(self.budget - self.allocator.num_slots)\n",
        "            pass\n",
    ),
    "a lease holds one token less": (
        "windows.hold(slots[self.start :])",
        "windows.hold(slots[self.start + 1 :])",
    ),
    "rows let go of what they see": ("first = max(0, start - windows.reach)", "first = start"),
    "a lease takes more than there is": (
        "        if further - self.stop > windows.num_available:\n            return False\n",
        "",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_the_machine_catches(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = BUGS[bug]
    module = "windows" if old in Path(windows.__file__).read_text() else "second_slots"
    load_changed(module, old, new, monkeypatch)
    members = {
        "windows_type": sys.modules["radixserve.cache.windows"].WindowSlots,
        "cache_type": sys.modules["radixserve.cache.kvcache"].KVCache,
        "compaction_type": sys.modules["radixserve.cache.compaction"].Compaction,
        "policy": staticmethod(sys.modules["radixserve.cache.policies.table"].POLICIES["lru"]),
    }
    machine = type("Changed", (WindowMachine,), members)
    with pytest.raises((AssertionError, KeyError, IndexError)):
        run_state_machine_as_test(machine, settings=HUNT)

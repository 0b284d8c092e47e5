"""Random walks over pins (pin_machine.py), and negative controls: bugs that the walk catches."""

from __future__ import annotations

import logging
import sys

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.cache.changed import load_changed
from tests.engine.pin_machine import PinMachine
from tests.hunt import HUNT

TestPinMachine = PinMachine.TestCase
TestPinMachine.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)

BUGS = {
    "a pin that ends keeps what it holds": (
        "pins",
        "            each.let_go()\n            self._news",
        "            self._news",
    ),
    "a pin that holds more keeps its old lease, too": (
        "pins",
        "        if before is not None:\n            before.release()\n",
        "",
    ),
    "what pins share counts for each of them": (
        "held_pin",
        "sum(node.num_tokens for node in nodes_held(pins))",
        "sum(each.num_held for each in pins)",
    ),
    "pins hold more than their share": (
        "pins",
        "        if kept < pin.num_held:",
        "        if False:",
    ),
    "the share of all counts for requests": (
        "pins",
        "max(of_all, self._counted(same) - self._most_of(pin.asked))",
        "of_all",
    ),
    "an operator's pin ends for another one": (
        "pins",
        "each.tenant is not None and tenant in (None, each.tenant)",
        "tenant in (None, each.tenant)",
    ),
    "another tenant's pin ends": (
        "pins",
        "each.tenant is not None and tenant in (None, each.tenant)",
        "each.tenant is not None",
    ),
    "the most recently used pin ends": (
        "pins",
        "        for each in self._pins.values():\n            gives_way",
        "        for each in reversed(self._pins.values()):\n            gives_way",
    ),
    "a hit does not count as a use": (
        "pins",
        "        self._pins[pin.id] = self._pins.pop(pin.id)\n",
        "",
    ),
    "a hit renews a pin whose end is fixed": (
        "pins",
        "        if pin.asked.renews:",
        "        if True:",
    ),
    "what is only warmed renews pins": ("pins", "if renews and prompt", "if prompt"),
    "the beginning of a pin renews it": (
        "pins",
        "prompt.begins_with(pin.prefix):",
        "pin.prefix.begins_with(prompt):",
    ),
    "a pin outlives its end by a moment": ("pins", "if each.end <= now]", "if each.end < now]"),
    "a longer pin leaves the shorter ones of its conversation": (
        "pins",
        "        self._end_shorter(asked, prefix)\n",
        "",
    ),
    "a longer pin ends what others have pinned": (
        "pins",
        "if each.tenant == asked.tenant\n                and each.end",
        "if each.end",
    ),
    "operators' pins give way first": (
        "pins",
        "(each.tenant is None, each.end), default",
        "(each.tenant is not None, each.end), default",
    ),
    "a smaller budget leaves pins as they are": (
        "pins",
        "        while self._num_counted > most_tokens and self.relent():\n            pass\n",
        "",
    ),
    "a pin that holds nothing stays when its prefix is dropped": (
        "held_pin",
        "branch.covers(self.prefix) or ",
        "",
    ),
    "the front is not told of ends": (
        "pins",
        "            self._changed[each.id] = -math.inf\n",
        "",
    ),
    "the front is not told of hits": (
        "pins",
        "        if pin.end - pin.told_end >=",
        "        if 9 <",
    ),
    "the front is told what pins hold when they are made only": (
        "pins",
        "news[each.id] = each.told_held = each.num_held",
        "news.setdefault(each.id, 0)",
    ),
    "tiers are not told of ends": (
        "pins",
        "            each.let_go()\n            self._news_for_tiers(_TIERS_SECONDS)\n",
        "            each.let_go()\n",
    ),
    "tiers keep the least recently used first": (
        "pins",
        "[*reversed(self._pins.values())]",
        "[*self._pins.values()]",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_the_machine_catches(
    bug: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_changed(*BUGS[bug], monkeypatch, "radixserve.engine", ("held_pin", "pins"))
    changed = sys.modules["radixserve.engine.pins"]
    members = {"pins_type": changed.Pins, "pins_module": changed}
    with caplog.at_level(logging.CRITICAL), pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(type("Changed", (PinMachine,), members), settings=HUNT)

"""Negative controls of the machine of the tiers: drops that forget host memory, or what waits to be
written; pins that tiers do not keep, or keep for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis.stateful import run_state_machine_as_test

from radixserve.prefix import Branch, Prefix
from radixserve.questions import Pin
from radixserve.store.folder.disk_store import DiskStore
from radixserve.tiers.contract import Dropping
from radixserve.tiers.disk import DiskTier
from radixserve.tiers.host import HostTier
from radixserve.tiers.kept import KeptPrefixes
from tests.hunt import HUNT
from tests.tiers import parts
from tests.tiers.test_machine import TierMachine


def host_keeps_all(self: HostTier, branch: Branch) -> Dropping:
    return Dropping(0, done=True)


def writes_go_on(self: DiskTier) -> bool:
    return False


def nothing(*given: object) -> None:
    pass


def pins_are_lost(self: DiskTier) -> list[Pin]:
    return []


def old_leases_stay(self: KeptPrefixes, prefixes: Sequence[Prefix]) -> None:
    self._found = {each: self._cache.match(each) for each in prefixes}
    self._hold()


BUGS: dict[str, tuple[type, str, Callable[..., object]]] = {
    "host memory keeps what is dropped": (HostTier, "drop", host_keeps_all),
    "what waits to be written is written": (DiskTier, "relent", writes_go_on),
}
BUGS_OF_PINS: dict[str, tuple[type, str, Callable[..., object]]] = {
    "host memory evicts what is pinned": (KeptPrefixes, "_hold", nothing),
    "the disk evicts what is pinned": (DiskStore, "_protect", nothing),
    "the next server has no pins": (DiskTier, "pins_left", pins_are_lost),
    "host memory keeps pins for ever": (KeptPrefixes, "keep", old_leases_stay),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_the_machine_finds(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong = BUGS[bug]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError, match="finds what was dropped"):
        run_state_machine_as_test(TierMachine, settings=HUNT)


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS_OF_PINS)
def test_the_machine_finds_bugs_of_pins(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong = BUGS_OF_PINS[bug]
    monkeypatch.setattr(owner, name, wrong)
    monkeypatch.setattr(parts, "PATIENCE_SECONDS", 5.0)  # a drop waits for leases that stay
    with pytest.raises(AssertionError):
        run_state_machine_as_test(TierMachine, settings=HUNT)

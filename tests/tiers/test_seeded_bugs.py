"""Negative controls of the machine of the tiers: drops that forget host memory, or what waits to be
written.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis.stateful import run_state_machine_as_test

from radixserve.prefix import Branch
from radixserve.tiers.contract import Dropping
from radixserve.tiers.disk import DiskTier
from radixserve.tiers.host import HostTier
from tests.hunt import HUNT
from tests.tiers.test_machine import TierMachine


def host_keeps_all(self: HostTier, branch: Branch) -> Dropping:
    return Dropping(0, done=True)


def writes_go_on(self: DiskTier) -> bool:
    return False


BUGS: dict[str, tuple[type, str, Callable[..., object]]] = {
    "host memory keeps what is dropped": (HostTier, "drop", host_keeps_all),
    "what waits to be written is written": (DiskTier, "relent", writes_go_on),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_the_machine_finds(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong = BUGS[bug]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError, match="finds what was dropped"):
        run_state_machine_as_test(TierMachine, settings=HUNT)

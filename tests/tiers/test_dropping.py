"""What an operator drops is found in no tier again: not by requests that wait for it, not after a
restart, not after a kill.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from radixserve.engine import answering
from radixserve.prefix import Prefix
from radixserve.questions import Asked, Drop, Dropped, Summarize, Summary
from radixserve.store.folder.disk_store import DiskStore
from tests.engine.content_model import expected
from tests.engine.harness import request
from tests.store.parts import QuickDisk
from tests.tiers.parts import SHAPE, Tiered, forget

pytestmark = pytest.mark.usefixtures("few_are_worth_it")

LONG = [i % 7 for i in range(40)]
OTHER = [5 - i % 5 for i in range(50)]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Tiered]:
    """An engine whose tiers have all of LONG and OTHER, and whose device has nothing."""
    engine = Tiered(128, host_slots=128, folder=tmp_path / "s")
    engine.ask(request("a", LONG), request("b", OTHER))
    engine.cache.slots.evict(engine.cache.stats().cached)
    engine.settle()
    yield engine
    engine.close()


def dropped(engine: Tiered, question: Drop) -> Dropped:
    answer = engine.answer_to(question)
    assert isinstance(answer, Dropped)
    return answer


def found(folder: Path, copy: Path, tokens: list[int]) -> int:
    """How much of `tokens` a server finds that is started on the folder as it is now, which is what
    a killed one leaves.
    """
    shutil.copytree(folder, copy)
    store = DiskStore(copy, 1 << 30, "model", SHAPE, disk=QuickDisk())
    try:
        return store.match(Prefix.of("public", tokens))
    finally:
        store.close()


def test_a_flush_empties_all_tiers_also_for_those_who_come_after_a_kill(
    engine: Tiered, tmp_path: Path
) -> None:
    answer = dropped(engine, Drop())
    assert set(answer.tiers) == {"host", "disk"}
    assert min(answer.tiers.values()) >= len(LONG) + len(OTHER)
    assert answer.pending == []
    assert found(tmp_path / "s", tmp_path / "copy", LONG) == 0
    engine.ask(request("again", LONG))
    assert engine.cached("again") == (0, 0, 0)
    assert engine.tokens("again") == expected(LONG, 4)
    engine.assert_drained()


def test_a_prefix_is_dropped_from_all_tiers_and_others_stay(engine: Tiered, tmp_path: Path) -> None:
    dropped(engine, Drop(prefix=LONG[:30]))
    engine.ask(request("again", LONG), request("other", OTHER))
    device, host, disk = engine.cached("again")
    assert device + host + disk < 30
    assert sum(engine.cached("other")) == len(OTHER) - 1
    assert engine.tokens("again") == expected(LONG, 4)
    engine.assert_drained()


def test_a_request_that_waits_for_the_disk_gets_nothing_of_what_was_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Tiered(128, folder=tmp_path / "s")
    engine.ask(request("a", LONG))
    forget(engine.cache)
    go_on, load = threading.Event(), DiskStore.load

    def slow(self: DiskStore, prefix: Prefix, start: int, stop: int) -> object:
        go_on.wait(10.0)
        return load(self, prefix, start, stop)

    monkeypatch.setattr(DiskStore, "load", slow)
    engine.submit(request("waits", LONG))
    engine.take(engine.core.step())
    engine.core.ask(Asked(1, Drop()))
    engine.core.answers()
    go_on.set()
    assert isinstance(engine.next_answer(), Dropped)
    engine.run()
    assert engine.cached("waits") == (0, 0, 0)
    assert engine.tokens("waits") == expected(LONG, 4)
    engine.settle()
    engine.close()
    engine.assert_drained()


def test_a_disk_that_hangs_delays_the_answer_by_a_bounded_time(
    engine: Tiered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "TIER_SECONDS", 0.05)
    go_on = threading.Event()
    monkeypatch.setattr(DiskStore, "drop", lambda self, branch: go_on.wait(10.0) and 0)
    answer = dropped(engine, Drop())
    assert answer.pending == ["disk"]
    go_on.set()


def test_what_was_not_used_for_long_goes_in_all_tiers(engine: Tiered) -> None:
    host = engine.host
    assert host is not None
    assert dropped(engine, Drop(older_than=3600.0)).tiers == {"host": 0, "disk": 0}
    time.sleep(0.02)
    answer = dropped(engine, Drop(older_than=0.001))
    assert answer.tiers["disk"] >= len(LONG) + len(OTHER)


def test_the_summary_names_every_tier(engine: Tiered) -> None:
    summary = engine.answer_to(Summarize())
    assert isinstance(summary, Summary)
    assert [each.name for each in summary.tiers] == ["device", "host", "disk"]
    assert summary.tiers[1].used_bytes >= 90 * SHAPE.slot_bytes


def test_two_drops_of_what_was_not_used_for_long_are_both_done(engine: Tiered) -> None:
    assert engine.host is not None
    both = [engine.host.drop_unused(names, -1.0) for names in (frozenset({"other"}), None)]
    engine.settle()
    assert [each.done for each in both] == [True, True]
    assert both[1].num_tokens >= len(LONG) + len(OTHER)

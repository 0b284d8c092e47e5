"""K/V in host memory and on the disk, as a request meets it: found again, in the right slots, and
never in the way.
"""

from __future__ import annotations

import itertools
import select
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from radixserve.errors import StartupError
from radixserve.prefix import Prefix
from radixserve.request import Request
from radixserve.store.admin import errands, transfer
from radixserve.store.folder.counters import RUNS, SKIPPED
from radixserve.store.folder.disk import Disk
from radixserve.tiers import disk as disk_tier
from radixserve.tiers.counters import TIER_BYTES, TIER_TOKENS
from tests.engine.content_model import expected
from tests.engine.harness import request
from tests.store.parts import QuickDisk, files, flip
from tests.tiers.parts import Tiered, forget

pytestmark = pytest.mark.usefixtures("few_are_worth_it")

LONG = [i % 7 for i in range(40)]
OTHER = [5 - i % 5 for i in range(50)]


@pytest.fixture
def opened() -> Iterator[list[Tiered]]:
    """Engines to be closed."""
    engines: list[Tiered] = []
    yield engines
    for engine in engines:
        engine.close()


def started(opened: list[Tiered], *args: object, **options: object) -> Tiered:
    opened.append(Tiered(*args, **options))  # type: ignore[arg-type]
    return opened[-1]


def right(engine: Tiered, name: str, prompt: list[int], count: int = 4) -> bool:
    return engine.tokens(name) == expected(prompt, count)


def test_what_the_device_evicts_comes_back_from_host_memory() -> None:
    engine = Tiered(64, host_slots=200)
    engine.ask(request("cold", LONG))
    engine.ask(request("other", OTHER))  # drives the first one out
    assert engine.cache.match(Prefix("public", b"")) == 0
    engine.ask(request("warm", LONG))
    assert engine.cached("cold") == (0, 0, 0)
    on_device, from_host, _ = engine.cached("warm")
    assert on_device + from_host == len(LONG) - 1
    assert from_host > 20
    assert right(engine, "cold", LONG)
    assert right(engine, "warm", LONG)
    assert engine.core.stats().value(TIER_TOKENS, "host", "up") == from_host
    engine.assert_drained()


def test_host_memory_keeps_to_its_budget_and_evicts_by_itself() -> None:
    engine = Tiered(64, host_slots=70)
    for i in range(6):
        engine.ask(request(f"r{i}", [i, *LONG[:39]]))
    stats = engine.core.stats()
    used, budget = (stats.value(TIER_BYTES, "host", state) for state in ("used", "budget"))
    assert 0 < used <= budget == 70 * 1024
    assert engine.host is not None
    assert engine.host.cache.stats().evicted_tokens_total > 0
    assert all(right(engine, f"r{i}", [i, *LONG[:39]]) for i in range(6))
    engine.assert_drained()


def test_a_prefix_longer_than_host_memory_is_simply_lost() -> None:
    engine = Tiered(64, host_slots=10)
    engine.ask(request("cold", LONG))
    engine.ask(request("other", OTHER))
    engine.ask(request("warm", LONG))
    assert right(engine, "warm", LONG)
    engine.assert_drained()


def test_a_restart_finds_what_was_computed_answers_included(
    tmp_path: Path, opened: list[Tiered]
) -> None:
    first = started(opened, 128, folder=tmp_path / "s")
    first.ask(request("cold", LONG, max_tokens=6))
    said = first.tokens("cold")
    first.close()
    opened.clear()
    again = started(opened, 128, folder=tmp_path / "s")
    turn = [*LONG, *said, 1, 2]
    again.ask(request("warm", LONG), request("next turn", turn))
    assert again.cached("warm") == (0, 0, len(LONG) - 1)
    (load,) = again.events["warm"][0].loads
    assert (load.tier, load.num_tokens) == ("disk", len(LONG) - 1)
    assert again.cached("next turn")[0] + again.cached("next turn")[2] == len(LONG) + 5
    assert right(again, "warm", LONG)
    assert right(again, "next turn", turn)
    again.assert_drained()


def test_several_who_need_the_same_prefix_load_it_once(
    tmp_path: Path, opened: list[Tiered]
) -> None:
    first = started(opened, 128, folder=tmp_path / "s")
    first.ask(request("cold", LONG))
    first.close()
    opened.clear()
    again = started(opened, 128, folder=tmp_path / "s")
    again.ask(*(request(f"r{i}", [*LONG, 6, i]) for i in range(4)))
    assert again.store is not None
    assert again.core.stats().value(TIER_TOKENS, "disk", "up") == 40, "one load for all four"
    assert all(right(again, f"r{i}", [*LONG, 6, i]) for i in range(4))
    assert [sum(again.cached(f"r{i}")) for i in range(4)] == [40, 41, 41, 41]


def test_who_leaves_while_it_is_loaded_leaves_nothing_behind(
    tmp_path: Path, opened: list[Tiered]
) -> None:
    first = started(opened, 128, folder=tmp_path / "s")
    first.ask(request("cold", LONG))
    first.close()
    opened.clear()
    again = started(opened, 128, folder=tmp_path / "s")
    again.submit(request("gone", LONG))
    again.take(again.core.step())  # asks the disk
    again.take(again.core.abort("gone"))
    again.settle()
    assert again.events["gone"][-1].finish == "abort"
    again.ask(request("warm", LONG))
    assert right(again, "warm", LONG)
    again.assert_drained()


def test_a_damaged_file_is_a_miss_that_is_counted(tmp_path: Path, opened: list[Tiered]) -> None:
    first = started(opened, 128, folder=tmp_path / "s")
    first.ask(request("cold", LONG))
    first.close()
    opened.clear()
    flip(files(tmp_path / "s")[0], -99)
    again = started(opened, 128, folder=tmp_path / "s")
    again.ask(request("warm", LONG))
    assert right(again, "warm", LONG)
    assert again.store is not None
    assert again.store.stats().verify_failures_total == 1


def test_a_pool_too_full_to_take_what_was_loaded_computes(
    tmp_path: Path, opened: list[Tiered]
) -> None:
    first = started(opened, 128, folder=tmp_path / "s")
    first.ask(request("cold", LONG))
    first.close()
    opened.clear()
    again = started(opened, 48, folder=tmp_path / "s")
    again.ask(request("busy", OTHER[:30], max_tokens=15), request("warm", LONG))
    assert right(again, "warm", LONG)
    assert right(again, "busy", OTHER[:30], 15)
    again.assert_drained()


class SlowDisk(QuickDisk):
    """Writes nothing before it is allowed to."""

    def __init__(self) -> None:
        self.allowed = False

    def execute(
        self, connection: sqlite3.Connection, statement: str, values: object = ()
    ) -> list[object]:
        while statement.startswith("INSERT") and not self.allowed:
            select.select([], [], [], 0.001)
        return super().execute(connection, statement, values)  # type: ignore[arg-type]


def test_slots_held_for_writing_are_given_up_for_those_who_need_them(
    tmp_path: Path, opened: list[Tiered]
) -> None:
    disk = SlowDisk()
    engine = started(opened, 120, folder=tmp_path / "s", disk=disk)
    engine.submit(*(request(f"r{i}", [i, i, *OTHER[:20]]) for i in range(4)))
    engine.run()  # nothing is written yet
    assert engine.cache.stats().pinned > 80
    engine.submit(request("large", [4, *LONG, *LONG], max_tokens=10))
    engine.run()  # needs more than is free
    assert right(engine, "large", [4, *LONG, *LONG], 10)
    disk.allowed = True
    engine.settle()
    assert engine.core.stats().value(SKIPPED) > 0
    engine.assert_drained()


@pytest.mark.parametrize("grows", [False, True], ids=["to begin", "to go on"])
def test_a_disk_that_hangs_in_the_middle_of_a_write_holds_no_slots_that_others_need(
    tmp_path: Path, opened: list[Tiered], monkeypatch: pytest.MonkeyPatch, grows: bool
) -> None:
    monkeypatch.setattr(disk_tier, "WRITE_TOKENS", 8)
    disk = SlowDisk()
    engine = started(opened, 64, folder=tmp_path / "s", disk=disk)
    engine.submit(request("written", LONG))
    engine.run()
    while not list((tmp_path / "s" / "runs").glob("*.safetensors")):
        time.sleep(0.01)  # its first part is on the disk, the row hangs
    assert engine.cache.stats().pinned >= len(LONG)
    prompt, count = ([6, 5, 4], 58) if grows else ([6, *OTHER], 8)
    engine.submit(request("all of it", prompt, count))
    engine.run()
    assert right(engine, "all of it", prompt, count)
    assert engine.disk is not None
    assert (engine.disk.writing, engine.disk.skipped_total) == (True, 2)  # the new one's own waits
    disk.allowed = True
    engine.settle()
    engine.assert_drained()
    engine.close()
    opened.clear()
    again = started(opened, 128, folder=tmp_path / "s")
    again.ask(request("warm", LONG), request("warm too", prompt, count))
    assert again.cached("warm") == (0, 0, 8), "what was copied before the slots were given away"
    assert right(again, "warm", LONG)
    assert right(again, "warm too", prompt, count)


def test_slots_are_not_taken_back_while_they_are_read(
    tmp_path: Path, opened: list[Tiered], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = started(opened, 64, folder=tmp_path / "s")
    read, reading, held = disk_tier.Reader.read, threading.Event(), list[bool]()  # type: ignore[attr-defined]

    def slowly(*args: Any) -> Any:
        reading.set()
        time.sleep(0.2)
        held.append(engine.cache.stats().leases > 0)
        return read(*args)

    monkeypatch.setattr(disk_tier.Reader, "read", slowly)  # type: ignore[attr-defined]
    engine.submit(request("written", LONG))
    engine.run()
    engine.submit(request("all of it", [6, *OTHER], 8))
    assert reading.wait(10)
    assert engine.disk is not None
    while engine.disk.relent():
        pass
    assert engine.cache.stats().leases == 0
    assert held == [True]
    engine.run()
    assert right(engine, "all of it", [6, *OTHER], 8)
    monkeypatch.setattr(disk_tier.Reader, "read", read)  # type: ignore[attr-defined]
    engine.settle()
    forget(engine.cache)
    engine.ask(request("warm", LONG))
    assert engine.cached("warm") == (0, 0, len(LONG) - 1)
    assert right(engine, "warm", LONG)


def test_what_is_not_worth_it_is_computed_and_tried_again_now_and_then(
    tmp_path: Path, opened: list[Tiered]
) -> None:
    engine = started(opened, 128, folder=tmp_path / "s")
    assert engine.disk is not None
    engine.ask(request("cold", LONG))
    engine.disk.pace.prefill.observe(1000, 0.001)
    engine.disk.pace.load.observe(10, 5.0)
    loaded = []
    for i in range(16):
        forget(engine.cache)
        engine.ask(request(f"r{i}", LONG))
        loaded.append(engine.cached(f"r{i}")[2])
    assert loaded == [0] * 15 + [len(LONG) - 1]


@pytest.mark.parametrize("failing", ["write", "read", "execute"])
def test_a_disk_that_fails_all_the_time_only_costs_the_hits(
    tmp_path: Path, opened: list[Tiered], failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = started(opened, 100, folder=tmp_path / "s")

    def fails(*_: object, **__: object) -> None:
        raise OSError(5, "the disk is broken")

    monkeypatch.setattr(Disk, failing, fails)
    if failing == "execute":
        monkeypatch.setattr(QuickDisk, failing, fails)
    for i in range(5):
        engine.ask(request(f"r{i}", LONG))
        forget(engine.cache)
    assert all(right(engine, f"r{i}", LONG) for i in range(5))
    engine.assert_drained()


def test_without_reuse_nothing_is_asked_or_kept(tmp_path: Path, opened: list[Tiered]) -> None:
    engine = started(opened, 100, folder=tmp_path / "s")
    engine.ask(request("cold", LONG))
    forget(engine.cache)
    engine.ask(request("echo", LONG, prompt_logprobs=1))
    assert engine.cached("echo") == (0, 0, 0)
    assert right(engine, "echo", LONG)


def test_not_more_than_so_many_writes_wait(
    tmp_path: Path, opened: list[Tiered], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_tier, "MAX_QUEUED", 2)
    disk = SlowDisk()
    engine = started(opened, 200, folder=tmp_path / "s", disk=disk)
    engine.submit(*(request(f"r{i}", [i, i, *OTHER[:20]]) for i in range(4)))
    engine.run()
    assert engine.cache.stats().leases == 3  # one that is being written, two that wait
    disk.allowed = True
    engine.settle()
    engine.assert_drained()


def asked(engine: Tiered, command: Callable[[], Any]) -> Any:
    """What a command beside the engine comes to; the engine sleeps and steps as it does in its
    process.
    """
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(command)
        while not done.done():
            engine.tiers.settle()
            time.sleep(0.01)
        return done.result()


def test_a_command_beside_the_engine_clears_and_imports(
    tmp_path: Path, opened: list[Tiered]
) -> None:
    folder = tmp_path / "s"
    engine = started(opened, 128, folder=folder)
    engine.ask(request("cold", LONG))
    with transfer.reading(folder) as index:
        name = max(index.rows(), key=lambda row: row.start + row.length).name
    transfer.export_prefix(folder, name, tmp_path / "file")
    assert asked(engine, lambda: transfer.clear(folder)) == 2
    assert files(folder) == []
    assert engine.core.stats().value(RUNS) == 0
    forget(engine.cache)
    engine.ask(request("cleared", LONG))
    assert engine.cached("cleared") == (0, 0, 0)
    asked(engine, lambda: transfer.clear(folder))
    forget(engine.cache)
    assert (
        asked(engine, lambda: transfer.import_prefix(folder, tmp_path / "file")).num_new
        == len(LONG) + 3
    )
    engine.ask(request("imported", LONG))
    assert engine.cached("imported") == (0, 0, len(LONG) - 1)
    assert all(right(engine, name, LONG) for name in ("cold", "cleared", "imported"))
    engine.assert_drained()


def test_a_long_errand_lets_loads_pass_and_does_not_outlive_the_engine(
    tmp_path: Path, opened: list[Tiered], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    engine = started(opened, 128, folder=folder)
    engine.ask(request("cold", LONG))
    forget(engine.cache)
    monkeypatch.setattr(
        errands.Attendant, "_doing", lambda *_: itertools.repeat(None)
    )  # never ends
    with ThreadPoolExecutor(1) as pool:
        mending = pool.submit(transfer.fix, folder)
        while not (folder / "begun.json").exists():
            time.sleep(0.01)
        engine.submit(request("warm", LONG))
        engine.run()
        assert engine.cached("warm") == (0, 0, len(LONG) - 1)
        engine.close()
        opened.clear()
        with pytest.raises(StartupError, match="has ended"):
            mending.result(20)
    assert (folder / "begun.json").exists()
    started(opened, 128, folder=folder)
    assert not (folder / "begun.json").exists()


def test_commands_are_heard_after_numbers_could_not_be_refreshed(
    tmp_path: Path, opened: list[Tiered], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = started(opened, 128, folder=tmp_path / "s")
    engine.ask(request("cold", LONG))

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(disk_tier.DiskTier, "_note_stats", broken)
        assert asked(engine, lambda: transfer.clear(tmp_path / "s")) == 2
        assert asked(engine, lambda: transfer.clear(tmp_path / "s")) == 0


def test_a_job_that_raises_harms_nobody(
    tmp_path: Path, opened: list[Tiered], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = started(opened, 100, folder=tmp_path / "s")

    def broken(*_: object) -> bool:
        raise RuntimeError("a bug")

    monkeypatch.setattr(disk_tier.DiskStore, "match", broken)  # type: ignore[attr-defined]
    engine.ask(request("a", LONG), request("b", OTHER))
    assert right(engine, "a", LONG)
    assert right(engine, "b", OTHER)
    engine.assert_drained()


def test_another_tenant_never_hits_in_any_tier(tmp_path: Path) -> None:
    prompt = list(range(1, 11)) * 4

    def asked(name: str, namespace: str) -> Request:
        return msgspec.structs.replace(request(name, prompt, 2), namespace=namespace)

    engine = Tiered(64, host_slots=128, folder=tmp_path)
    engine.ask(asked("ours", "a/1"))
    engine.ask(asked("theirs on device", "b/2"))
    engine.cache.slots.evict(64)
    engine.settle()
    engine.ask(asked("ours again", "a/1"))
    engine.ask(asked("theirs in host memory", "c/3"))
    assert engine.cached("theirs on device") == engine.cached("theirs in host memory") == (0, 0, 0)
    assert engine.cached("ours again")[1] > 0
    engine.close()
    engine = Tiered(64, folder=tmp_path)
    engine.ask(asked("ours on disk", "a/1"))
    engine.ask(asked("theirs on disk", "d/4"))
    assert engine.cached("theirs on disk") == (0, 0, 0)
    assert engine.cached("ours on disk")[2] > 0
    engine.close()


def test_a_load_is_waited_for_longer_while_nobody_knows_how_long_computing_takes(
    tmp_path: Path,
) -> None:
    engine = Tiered(folder=tmp_path / "s")
    assert engine.disk is not None
    prefix = Prefix.of("public", list(range(40)))
    first = engine.disk.fetch(prefix, 0).until
    engine.disk.pace.prefill.observe(100, 0.001)
    fast = engine.disk.fetch(prefix, 0).until
    engine.disk.pace.prefill.observe(100, 10_000.0)
    slow = engine.disk.fetch(prefix, 0).until
    assert fast < first < slow
    engine.settle()
    engine.close()

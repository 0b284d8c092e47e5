"""What is put comes back, the longest stored prefix and nothing else; budget, order of eviction,
counts.
"""

from __future__ import annotations

import gc
import re
import sqlite3
import time
from pathlib import Path

import pytest
import torch

from radixserve.errors import StartupError
from radixserve.prefix import Prefix
from radixserve.store.admin import tools
from radixserve.store.folder import disk_store
from radixserve.store.folder.disk import Disk
from radixserve.store.folder.disk_store import DiskStore
from radixserve.store.format import run_file
from radixserve.tensors.kv import KVShape
from radixserve.tensors.one_byte import rows_of
from tests.store.parts import (
    MODEL,
    SHAPE,
    CountingDisk,
    content,
    files,
    loads,
    on_disk,
    opened,
    put,
)

WIDE = KVShape(
    layers=2, kv_heads=1, k_dim=2048, v_dim=2048, dtype=torch.float32
)  # 32 KiB per token


def test_what_is_put_comes_back_bit_for_bit(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    assert put(store, "a", [1, 2, 3, 4]) == 4
    assert store.match(Prefix.of("a", [1, 2, 3, 4, 5])) == 4
    assert [loads(store, "a", [1, 2, 3, 4, 5], start) for start in range(5)] == [4, 3, 2, 1, 0]
    assert loads(store, "a", [1, 2, 3, 4], 1, 3) == 2
    assert loads(store, "a", [1, 2, 9, 4]) == 2


def test_a_store_that_is_forgotten_closes_its_index(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    connection = store._folder.index._connection
    del store
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def test_putting_again_writes_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", [1, 2, 3])
    assert put(store, "a", [1, 2, 3]) == 0
    assert put(store, "a", [1, 2]) == 0
    assert len(files(tmp_path / "s")) == 1


def test_only_the_rest_is_written_and_it_may_hang_inside_a_run(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", [1, 2, 3, 4])
    assert put(store, "a", [1, 2, 7, 8]) == 2
    assert put(store, "a", [1, 2, 7, 8, 9], start=3) == 1
    assert loads(store, "a", [1, 2, 7, 8, 9]) == 5
    assert loads(store, "a", [1, 2, 3, 4]) == 4
    assert store.stats().runs == 3


def test_nothing_is_stored_behind_a_gap(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    assert put(store, "a", [1, 2, 3, 4], start=2) == 0
    put(store, "a", [1, 2])
    assert put(store, "a", [1, 2, 3, 4], start=2) == 2
    assert loads(store, "a", [1, 2, 3, 4]) == 4


def test_namespaces_and_models_share_nothing_but_the_folder(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", [1, 2, 3])
    put(store, "b", [1, 2])
    assert [store.match(Prefix.of(name, [1, 2, 3])) for name in ("a", "b", "", "ab")] == [
        3,
        2,
        0,
        0,
    ]
    store.close()
    other = opened(tmp_path / "s", model="model-b")
    assert other.match(Prefix.of("a", [1, 2, 3])) == 0
    assert other.stats().runs == 2


def test_a_long_rest_is_cut_into_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_store, "MAX_RUN_TOKENS", 4)
    store, tokens = opened(tmp_path / "s"), list(range(11))
    assert put(store, "a", tokens) == 11
    assert store.stats().runs == 3
    assert loads(store, "a", tokens) == 11
    assert loads(store, "a", tokens, 3, 9) == 6


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8]
)
def test_every_dtype_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    shape = KVShape(2, 3, 4, 5, dtype)
    store = DiskStore(tmp_path / "s", 1 << 30, MODEL, shape)
    k, v = rows_of(torch.randn(2, 7, 3, 4), dtype), rows_of(torch.randn(2, 7, 3, 5), dtype)
    store.put(Prefix.of("a", [1, 2, 3, 4, 5, 6, 7]), 0, k, v)
    kv = store.load(Prefix.of("a", [1, 2, 3, 4, 5, 6, 7]), 0, 7)
    assert kv is not None
    assert torch.equal(kv[0].view(torch.uint8), k.view(torch.uint8))
    assert torch.equal(kv[1].view(torch.uint8), v.view(torch.uint8))


def test_a_restart_finds_everything(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", [1, 2, 3])
    put(store, "a", [1, 2, 4])
    store.close()
    again = opened(tmp_path / "s")
    assert loads(again, "a", [1, 2, 3]) == 3
    assert loads(again, "a", [1, 2, 4]) == 3


def test_the_least_recently_used_leaves_go_first_and_the_folder_keeps_its_budget(
    tmp_path: Path,
) -> None:
    budget = 3 << 19
    store = DiskStore(tmp_path / "s", budget, MODEL, WIDE)
    for first in range(3):
        put(store, "a", [first, *range(10, 17)])  # 256 KiB each
    assert loads(store, "a", [0, 10]) == 2
    put(store, "a", [0, 10, *range(50, 58)])
    assert [store.match(Prefix.of("a", [first, 10])) for first in range(3)] == [2, 0, 2]
    stats = store.stats()
    assert (stats.evicted_runs_total, stats.runs) == (1, 3)
    assert stats.bytes <= budget
    assert on_disk(tmp_path / "s") == stats.bytes


@pytest.mark.parametrize("jump", [-86400.0, 365 * 86400.0])
def test_a_clock_that_jumps_changes_no_order_of_eviction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], jump: float
) -> None:
    budget, now = 3 << 19, time.time
    store = DiskStore(tmp_path / "s", budget, MODEL, WIDE)
    put(store, "a", [0, *range(10, 17)])
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    put(store, "a", [1, *range(10, 17)])
    store.close()
    monkeypatch.setattr(time, "time", now)
    store = DiskStore(tmp_path / "s", budget, MODEL, WIDE)
    for first in range(2, 4):
        put(store, "a", [first, *range(10, 17)])
    stored = [store.match(Prefix.of("a", [first, 10])) for first in range(4)]
    assert stored == sorted(stored), "the older ones went first"
    assert stored[0] == 0
    assert stored[3] == 2
    tools.ls(tmp_path / "s")
    assert not re.search(r"-\d+ \w+ ago", capsys.readouterr().out)


def test_a_put_that_can_never_fit_is_refused_and_evicts_nothing(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "s", 3 << 19, MODEL, WIDE)
    put(store, "a", [1, 2, 3])
    assert put(store, "a", [7] * 40) == 0
    assert store.match(Prefix.of("a", [1, 2, 3])) == 3
    assert put(store, "a", [1, 2, 3, *[7] * 28]) == 0, "its own prefix must not make room for it"
    assert store.match(Prefix.of("a", [1, 2, 3])) == 3
    assert store.stats().refused_total == 2


def test_a_smaller_budget_evicts_at_the_start(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "s", 1 << 30, MODEL, WIDE)
    for first in range(8):
        put(store, "a", [first, *range(10, 17)])
    store.close()
    again = DiskStore(tmp_path / "s", 3 << 19, MODEL, WIDE)
    assert again.stats().bytes <= 3 << 19
    assert again.match(Prefix.of("a", [7, 10])) == 2, "the last used stays"
    assert again.match(Prefix.of("a", [0, 10])) == 0


def test_clear_removes_everything(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", [1, 2, 3])
    put(store, "b", [1, 2, 3])
    assert store.clear() == 2
    assert (store.stats().runs, files(tmp_path / "s")) == (0, [])
    assert put(store, "a", [1, 2, 3]) == 3


def test_stats_count_what_happened(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", [1, 2, 3])
    loads(store, "a", [1, 2, 3])
    loads(store, "a", [9])
    stats = store.stats()
    assert (stats.runs, stats.stored_tokens_total) == (1, 3)
    assert stats.writing


def test_matching_touches_no_file(tmp_path: Path) -> None:
    disk = CountingDisk()
    store = opened(tmp_path / "s", disk=disk)
    put(store, "a", [1, 2, 3])
    disk.steps.clear()
    store.match(Prefix.of("a", [1, 2, 3]))
    assert disk.steps == ["sql SELECT"]


def test_a_run_is_written_file_first_and_row_last_and_removed_the_other_way_round(
    tmp_path: Path,
) -> None:
    disk = CountingDisk()
    store = opened(tmp_path / "s", disk=disk)
    disk.steps.clear()
    put(store, "a", [1, 2, 3])
    first = disk.steps.index("write")
    order = ["write", "written", "sync", "rename", "sync", "sql BEGIN", "sql INSERT", "sql COMMIT"]
    assert disk.steps[first : first + 8] == order
    disk.steps.clear()
    store.clear()
    assert disk.steps[-4:] == ["sql BEGIN", "sql DELETE", "sql COMMIT", "unlink"]


# Whose K/V it is.


def test_digests_that_are_all_the_same_never_give_the_kv_of_other_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_file, "_digest", lambda parts: "0" * 64)
    monkeypatch.setattr(run_file, "digest_fields", lambda *fields: "1" * 64)
    store = opened(tmp_path / "s")
    prompts = [[1, 2, 3], [1, 2, 4], [2, 2, 3], [1, 2, 3, 5], [3]]
    for namespace in ("a", "b"):
        for tokens in prompts:
            put(store, namespace, tokens)
    for namespace in ("a", "b"):
        for tokens in prompts:
            loads(store, namespace, tokens)  # asserts the content
    assert loads(store, "a", [1, 2, 3]) == 3


def test_a_file_under_the_name_of_another_is_not_used_even_if_all_digests_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_file, "_digest", lambda parts: "0" * 64)
    store = opened(tmp_path / "s")
    put(store, "a", [1, 2, 3])
    first = files(tmp_path / "s")[0]
    data = first.read_bytes()
    store.clear()
    put(store, "a", [1, 2, 4])
    files(tmp_path / "s")[0].write_bytes(data)
    assert loads(store, "a", [1, 2, 4]) == 0
    assert store.stats().verify_failures_total == 1


# The folder.


def test_a_second_store_on_the_folder_is_refused_by_name(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    with pytest.raises(StartupError, match=f"{tmp_path / 's'} is in use by another process"):
        opened(tmp_path / "s")
    store.close()
    opened(tmp_path / "s").close()


def test_the_folder_is_the_owners_alone(tmp_path: Path) -> None:
    opened(tmp_path / "s").close()
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")
    with pytest.raises(StartupError, match=f"cannot use the store in {tmp_path / 's'}"):
        opened(tmp_path / "s")


def test_leftovers_are_swept(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", [1, 2, 3])
    put(store, "a", [1, 2, 3, 4])
    put(store, "a", [5, 6])
    paths = {path.name: path for path in files(tmp_path / "s")}
    row = store._folder.index.walk(MODEL, Prefix.of("a", [1, 2, 3]))[0].row
    store.close()
    paths[row.name].unlink()
    (tmp_path / "s" / "runs" / ("0" * 64 + ".safetensors")).write_text("no row")
    (tmp_path / "s" / "runs" / ("0" * 64 + ".safetensors.tmp")).write_text("half")
    again = opened(tmp_path / "s")
    assert (again.match(Prefix.of("a", [1, 2, 3, 4])), again.match(Prefix.of("a", [5, 6]))) == (
        0,
        2,
    )
    assert len(files(tmp_path / "s")) == 1


def test_sweeping_reads_no_run(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    for first in range(5):
        put(store, "a", [first])
    store.close()
    disk = CountingDisk()
    opened(tmp_path / "s", disk=disk).close()
    assert "read" not in disk.steps
    assert len(disk.steps) < 40


def test_a_file_that_cannot_be_removed_counts_until_it_can(tmp_path: Path) -> None:
    class Sticky(Disk):
        stuck = True

        def unlink(self, path: Path) -> None:
            if self.stuck and path.parent.name == "runs":
                raise PermissionError(13, "Permission denied")
            super().unlink(path)

    disk = Sticky()
    store = opened(tmp_path / "s", disk=disk)
    put(store, "a", [1, 2, 3])
    assert store.clear() == 1
    assert store.stats().bytes == on_disk(tmp_path / "s")
    assert put(store, "a", [1, 2, 3]) == 3, "what could not be removed is written anew"
    disk.stuck = False
    put(store, "a", [5])
    assert loads(store, "a", [1, 2, 3]) == 3
    assert store.stats().bytes == on_disk(tmp_path / "s")


def test_the_connection_is_no_business_of_other_threads(tmp_path: Path) -> None:
    import threading

    store = opened(tmp_path / "s")
    thread = threading.Thread(target=put, args=(store, "a", [1, 2]))
    thread.start()
    thread.join(20)
    assert loads(store, "a", [1, 2]) == 2


def test_sqlite_is_new_enough() -> None:
    assert sqlite3.sqlite_version_info >= (3, 37)


def test_content_of_the_tests_tells_prefixes_apart() -> None:
    assert not torch.equal(content("a", [1, 2])[0], content("b", [1, 2])[0])
    assert not torch.equal(content("a", [1, 2])[0], content("a", [2, 2])[0])
    assert content("a", [1, 2], 1)[0].shape == (SHAPE.layers, 1, SHAPE.kv_heads, SHAPE.k_dim)

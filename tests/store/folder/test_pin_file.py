"""The list of pins in a store's folder: what is read back, and what damage does."""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixserve.prefix import Prefix, pack
from radixserve.questions import Pin
from radixserve.store.folder.disk import Disk
from radixserve.store.folder.disk_store import DiskStore
from radixserve.store.folder.pin_file import MAX_SECONDS, StoredPin, encoded, read_pins
from radixserve.store.format.layout import PINS
from tests.store.parts import SHAPE, QuickDisk, files, flip, on_disk, put, wide

LINE = b"radixserve pins 1\n"


def pin(name: str, tokens: list[int], left: float = 500.0, **more: object) -> Pin:
    asked = Pin(id=name, seconds=600.0, renews=True, namespace="public", packed=pack(tokens))
    return msgspec.structs.replace(asked, seconds_left=left, **more)


def opened(folder: Path, budget: int = 1 << 30, fingerprint: str = "model") -> DiskStore:
    return DiskStore(folder, budget, fingerprint, SHAPE, disk=QuickDisk())


def left(folder: Path, fingerprint: str = "model") -> list[str]:
    store = opened(folder, fingerprint=fingerprint)
    names = [each.id for each in store.pins_left()]
    store.close()
    return names


def test_pins_are_read_back_by_their_model_until_they_end(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.keep([pin("a", [1, 2]), pin("over", [3], left=0.0), pin("t", [4], tenant="t")], 0.5)
    a, t = store.pins_left()
    assert a.seconds_left == pytest.approx(500, abs=30)
    assert (a.packed, a.namespace, t.tenant) == (pack([1, 2]), "public", "t")
    store.close()
    assert left(tmp_path, "other") == []
    other = opened(tmp_path, fingerprint="other")
    other.keep([pin("b", [1])], 0.5)
    other.close()
    assert left(tmp_path) == ["a", "t"]
    assert left(tmp_path, "other") == ["b"]
    assert (tmp_path / PINS).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "long", "other file"])
def test_a_damaged_list_is_ignored_and_nothing_else_is_lost(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path)
    put(store, "public", [1, 2, 3])
    store.keep([pin("a", [1, 2])], 0.5)
    store.close()
    file = tmp_path / PINS
    content = file.read_bytes()
    if damage == "flip":
        flip(file, 8 * 60 + 3)
    else:
        forms = {"cut": content[:-1], "empty": b"", "long": content + b"x", "other file": b"hello"}
        file.write_bytes(forms[damage])
    with caplog.at_level(logging.WARNING):
        store = opened(tmp_path)
        assert store.pins_left() == []
    assert "pins" in caplog.text
    assert store.match(Prefix.of("public", [1, 2, 3])) == 3
    store.close()


@pytest.mark.parametrize(
    "wrong",
    [
        StoredPin("model", float("nan"), pin("a", [1])),
        StoredPin("model", time.time() + 5, pin("", [1])),
        StoredPin("model", time.time() + 5, pin("a", [])),
        StoredPin("model", time.time() + 5, pin("a", [1], packed=b"123")),
        StoredPin("model", time.time() + 5, pin("a", [1], seconds=-1.0)),
        StoredPin("model", time.time() + 5, pin("a", [1], seconds=float("nan"))),
        StoredPin("model", time.time() + 5, pin("a", [1], kv_quota=float("nan"))),
        StoredPin("model", time.time() + 5, pin("a", [1], node=4)),
        StoredPin("model", time.time() + 5, pin("a", [1], namespace="x" * 2000)),
    ],
)
def test_a_list_with_a_pin_that_cannot_be_is_ignored(tmp_path: Path, wrong: StoredPin) -> None:
    good = StoredPin("model", time.time() + 5, pin("b", [1]))
    (tmp_path / PINS).write_bytes(b"".join(encoded([good], 1 << 20)))
    assert [each.pin.id for each in read_pins(Disk(), tmp_path)] == ["b"]
    (tmp_path / PINS).write_bytes(b"".join(encoded([good, wrong], 1 << 20)))
    assert read_pins(Disk(), tmp_path) == []


def test_a_clock_that_was_set_back_makes_no_pin_eternal(tmp_path: Path) -> None:
    ahead = StoredPin("model", time.time() + MAX_SECONDS + 60, pin("a", [1]))
    (tmp_path / PINS).write_bytes(b"".join(encoded([ahead], 1 << 20)))
    assert read_pins(Disk(), tmp_path) == []


@given(st.binary(max_size=200))
def test_no_bytes_raise(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    folder = tmp_path_factory.mktemp("pins")
    (folder / PINS).write_bytes(LINE + hashlib.sha256(body).digest() + body)
    assert all(isinstance(each, StoredPin) for each in read_pins(Disk(), folder))


def test_the_list_is_within_the_budget(tmp_path: Path) -> None:
    store = opened(tmp_path, budget=1 << 20)
    store.keep([pin(str(i), [i] * 1000) for i in range(500)], 0.5)
    assert 0 < len(store.pins_left()) < 20
    assert on_disk(tmp_path) <= 1 << 20
    store.close()


BUDGET = 4 << 20


def filled(folder: Path) -> DiskStore:
    store = wide(folder, BUDGET, QuickDisk())
    put(store, "public", [1, 2, 3, 4])
    put(store, "public", [1, 2, 9, 9])
    return store


def fill(store: DiskStore) -> None:
    """Store enough for everything that is not pinned to be evicted."""
    for number in range(10, 24):
        put(store, "public", [number] * 60)


def matched(store: DiskStore, tokens: list[int]) -> int:
    return store.match(Prefix.of("public", tokens))


def test_what_is_pinned_is_not_evicted(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.keep([pin("a", [1, 2, 3, 4]), pin("later", [7] * 30)], 0.5)
    put(store, "public", [7] * 30)
    fill(store)
    assert store.stats().evicted_runs_total > 0
    assert matched(store, [1, 2, 3, 4]) == 4
    assert matched(store, [7] * 30) == 30, "what is stored after it was pinned stays, too"
    assert matched(store, [1, 2, 9, 9]) == 2
    assert on_disk(tmp_path) <= BUDGET
    assert store.drop_unused(None, -1.0) > 0
    assert matched(store, [1, 2, 3, 4]) == 4
    store.keep([], 0.5)
    fill(store)
    assert matched(store, [1, 2, 3, 4]) == 0
    store.close()


@pytest.mark.parametrize("other", [False, True])
def test_a_store_that_is_opened_with_a_smaller_budget_evicts_what_is_pinned_last(
    tmp_path: Path, other: bool
) -> None:
    store = filled(tmp_path)
    store.keep([pin("a", [1, 2, 3, 4])], 0.5)
    for number in range(10, 17):
        put(store, "public", [number] * 60)
    store.close()
    less = BUDGET // 2
    again = opened(tmp_path, less, "another model") if other else wide(tmp_path, less, QuickDisk())
    assert again.stats().evicted_runs_total > 0
    assert on_disk(tmp_path) <= less
    again.close()
    store = wide(tmp_path, BUDGET, QuickDisk())
    assert matched(store, [1, 2, 3, 4]) == 4
    assert matched(store, [10] * 60) == 0
    store.close()


def test_what_is_pinned_is_evicted_where_nothing_else_is_left(tmp_path: Path) -> None:
    store = wide(tmp_path, BUDGET, QuickDisk())
    for number in range(4):
        put(store, "public", [number] * 60)
    store.keep([pin(str(i), [i] * 60) for i in range(4)], 1.0)
    store.close()
    budget = 2 * files(tmp_path)[0].stat().st_size + 4096  # less than two of them and the index
    store = wide(tmp_path, budget, QuickDisk())
    assert on_disk(tmp_path) <= budget
    assert [matched(store, [i] * 60) for i in range(4)] == [0, 60, 0, 0]
    assert store.folder.pinned == {}
    store.close()


def test_what_is_stored_for_another_model_leaves_pins_as_they_are(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.keep([pin("a", [1, 2, 3, 4])], 0.5)
    put(store.of_model("other", store.shape), "public", [1, 2, 3, 4])
    fill(store)
    assert matched(store, [1, 2, 3, 4]) == 4
    store.close()


def test_pins_fill_their_share_of_the_budget_and_no_more(tmp_path: Path) -> None:
    store = wide(tmp_path, BUDGET, QuickDisk())
    put(store, "public", [1] * 60)
    put(store, "public", [2] * 60)
    of_one = store.folder.index.num_bytes() / 2
    store.keep([pin("a", [1] * 60), pin("b", [2] * 60)], 1.2 * of_one / BUDGET)
    fill(store)
    assert (matched(store, [1] * 60), matched(store, [2] * 60)) == (60, 0)
    store.close()


def test_pinned_runs_can_be_dropped_and_a_new_index_knows_them(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.keep([pin("a", [1, 2, 3, 4])], 0.5)
    store.folder.index.close()
    assert store.match(Prefix.of("public", [1])) == 0, "the index is gone"
    fill(store)
    assert matched(store, [1, 2, 3, 4]) == 4
    assert store.clear() > 0
    assert store.folder.pinned == {}
    store.close()

"""Runs of public tokens on the disk, and what namespaces add to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from radixserve.prefix import PUBLIC, Branch, Prefix, pack
from radixserve.store.admin import transfer
from radixserve.store.folder.disk_store import DiskStore
from tests.store.parts import loads, opened, put

SYSTEM = [1, 2, 3, 4]
LONGER = [*SYSTEM, 5, 6]  # another public prefix
PROMPT = [*SYSTEM, 5, 9]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    """Two tenants behind SYSTEM; one of them also behind LONGER, and without a public part."""
    store = opened(tmp_path / "s")
    put(store, "a/0", [*LONGER, 7], num_public=6)
    for namespace in ("a/0", "b/0"):
        put(store, namespace, PROMPT, num_public=4)
    put(store, "a/0", PROMPT)
    yield store
    with contextlib.suppress(OSError):  # a test has closed it
        store.close()


def found(store: DiskStore) -> list[int]:
    """How much is stored of each prompt."""
    return [
        loads(store, PUBLIC, LONGER),
        loads(store, "a/0", [*LONGER, 7], num_public=6),
        loads(store, "a/0", PROMPT, num_public=4),
        loads(store, "b/0", PROMPT, num_public=4),
        loads(store, "a/0", PROMPT),
    ]


def test_public_tokens_are_stored_once(store: DiskStore) -> None:
    assert found(store) == [6, 7, 6, 6, 6]
    rows = store.folder.index.rows()
    assert sorted((row.namespace, row.start, row.length) for row in rows) == [
        ("a/0", 0, 6),
        ("a/0", 4, 2),
        ("a/0", 6, 1),
        ("b/0", 4, 2),
        (PUBLIC, 0, 6),
    ]


@pytest.mark.parametrize(
    ("names", "tokens", "left"),
    [
        (["a/0"], [], [6, 6, 4, 6, 0]),
        (["b/0"], [], [6, 7, 6, 4, 6]),
        ([PUBLIC], [], [0, 0, 0, 0, 6]),
        (["a/0"], PROMPT, [6, 7, 4, 6, 0]),
        (["b/0"], PROMPT[:5], [6, 7, 6, 4, 6]),
        (["b/0"], SYSTEM[:2], [6, 7, 6, 4, 6]),
        (None, SYSTEM, [0, 0, 0, 0, 0]),
        (None, PROMPT, [6, 7, 4, 4, 0]),
        (None, [*SYSTEM, 6], [6, 7, 6, 6, 6]),
    ],
)
def test_drops_take_what_follows_in_the_namespaces_that_are_named(
    store: DiskStore, names: list[str] | None, tokens: list[int], left: list[int]
) -> None:
    before = sum(row.length for row in store.folder.index.rows())
    namespaces = None if names is None else frozenset(names)
    removed = store.drop(Branch(namespaces, pack(tokens)))
    assert found(store) == left
    rows = store.folder.index.rows()
    assert removed == before - sum(row.length for row in rows)
    assert {row.parent for row in rows} <= {0, *(row.id for row in rows)}, "a run has no parent"


def test_what_was_not_used_goes_with_all_that_continues_it(store: DiskStore) -> None:
    store.folder.index._sql("UPDATE runs SET used = 0")
    assert store.drop_unused(frozenset([PUBLIC]), 60) == 11
    assert found(store) == [0, 0, 0, 0, 6]


def test_a_lost_index_is_rebuilt(store: DiskStore, tmp_path: Path) -> None:
    store.close()
    for each in (tmp_path / "s").glob("index*"):
        each.unlink()
    again = opened(tmp_path / "s")
    assert found(again) == [6, 7, 6, 6, 6]
    again.close()


def test_a_prefix_keeps_its_public_part_when_it_moves(store: DiskStore, tmp_path: Path) -> None:
    (row,) = [each for each in store.folder.index.rows() if each.namespace == "b/0"]
    store.close()
    assert transfer.check(tmp_path / "s").problems == []
    header = transfer.export_prefix(tmp_path / "s", row.name, tmp_path / "file")
    assert (header.num_tokens, header.num_public) == (6, 4)
    other = opened(tmp_path / "t")
    other.close()
    transfer.import_prefix(tmp_path / "t", tmp_path / "file")
    other = opened(tmp_path / "t")
    assert loads(other, "b/0", PROMPT, num_public=4) == 6
    assert other.match(Prefix.of("a/0", PROMPT, num_public=4)) == 4
    assert other.match(Prefix.of("b/0", PROMPT)) == 0
    other.close()

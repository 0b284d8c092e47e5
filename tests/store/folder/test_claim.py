"""Which folders are stores, and that nothing of anybody else's is touched: in folders that are
none,
and beside our own files in those that are.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from radixserve.cli import main
from radixserve.errors import StartupError
from radixserve.store.admin import transfer
from radixserve.store.folder.disk import Disk
from radixserve.store.folder.index import Index
from radixserve.store.folder.store_folder import StoreFolder
from radixserve.store.format import layout
from tests.store.admin.test_errands import exported
from tests.store.parts import PLENTY, files, flip, loads, opened, put

PROMPT = [1, 2, 3, 4, 5]
RUN = "0" * 64 + ".safetensors"


def tree(folder: Path) -> dict[str, object]:
    """Everything below a folder: kinds, modes, contents and what links say."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        what: object = "folder"
        if path.is_symlink():
            what = os.readlink(path)
        elif path.is_file():
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_ino, what)
    return found


# Folders that are no stores.


def tensorboard(folder: Path) -> None:
    (folder / "runs" / "exp1").mkdir(parents=True)
    (folder / "runs" / "exp1" / "events.out").write_text("events")
    (folder / "runs" / "model.safetensors").write_text("weights")


def files_of_ours_by_chance(folder: Path) -> None:
    for name in ("lock", "asked.json", "fingerprints.json", "notes.tmp", "asked.json.tmp"):
        (folder / name).write_text("precious")


def foreign_index(folder: Path) -> None:
    connection = sqlite3.connect(folder / "index.sqlite")
    connection.execute("CREATE TABLE pages (url TEXT)")
    connection.commit()
    connection.close()
    (folder / "runs").mkdir()
    (folder / "lock").write_text("")


def one_file(folder: Path) -> None:
    (folder / "README").write_text("mine")


def linked_runs(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / RUN).write_text("precious")
    (elsewhere / (RUN + ".tmp")).write_text("precious")
    (folder / "runs").symlink_to(elsewhere)


def an_empty_runs(folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "lock").write_text("")


def a_marker_of_others(folder: Path) -> None:
    (folder / "radixserve-store").write_text("notes on my radixserve store")
    (folder / "x").write_text("")


def a_linked_marker(folder: Path) -> None:
    opened(folder.parent / "store").close()
    (folder / "radixserve-store").symlink_to(folder.parent / "store" / "radixserve-store")
    (folder / "notes.tmp").write_text("precious")


def old_store(folder: Path) -> None:
    """As versions without a marker made them."""
    store = opened(folder)
    put(store, "a", PROMPT)
    store.close()
    (folder / "radixserve-store").unlink()


def old_store_with(name: str, text: str = "precious") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        old_store(folder)
        (folder / name).write_text(text)

    make.__name__ = f"old_store_with_{name}"
    return make


def old_store_with_linked_runs(folder: Path) -> None:
    old_store(folder)
    (folder / "runs").rename(folder.parent / "runs")
    (folder / "runs").symlink_to(folder.parent / "runs")


def old_store_with_a_linked_index(folder: Path) -> None:
    old_store(folder)
    (folder / "index.sqlite").rename(folder.parent / "index.sqlite")
    (folder / "index.sqlite").symlink_to(folder.parent / "index.sqlite")


def old_store_without_its_index(folder: Path) -> None:
    old_store(folder)
    (folder / "index.sqlite").unlink()


NO_STORES = (
    tensorboard,
    files_of_ours_by_chance,
    foreign_index,
    one_file,
    linked_runs,
    an_empty_runs,
    a_marker_of_others,
    a_linked_marker,
    old_store_with("notes.tmp"),
    old_store_with("runs/model.safetensors"),
    old_store_with("runs/half.tmp"),
    old_store_with("lock"),
    old_store_with_linked_runs,
    old_store_with_a_linked_index,
    old_store_without_its_index,
)

REFUSALS: dict[str, Callable[[Path, Path], object]] = {
    "server": lambda folder, source: opened(folder),
    "ls": lambda folder, source: main(["cache", "ls", str(folder)]),
    "check": lambda folder, source: main(["cache", "check", str(folder)]),
    "fix": lambda folder, source: main(["cache", "check", "--fix", str(folder)]),
    "clear": lambda folder, source: main(["cache", "clear", str(folder)]),
    "export": lambda folder, source: main(["cache", "export", str(folder), "0", f"{source}.out"]),
    "import": lambda folder, source: main(["cache", "import", str(folder), str(source)]),
}


@pytest.mark.parametrize("how", REFUSALS)
@pytest.mark.parametrize("make", NO_STORES, ids=lambda make: make.__name__)
def test_a_folder_that_is_no_store_is_refused_by_everything_and_stays_as_it_is(
    tmp_path: Path,
    make: Callable[[Path], None],
    how: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = exported(tmp_path / "t", PROMPT, tmp_path / "file")
    (tmp_path / "s").mkdir(mode=0o700)
    make(tmp_path / "s")
    before = tree(tmp_path)
    try:
        assert REFUSALS[how](tmp_path / "s", source) == 2
        said = capsys.readouterr().err
    except StartupError as refusal:
        said = f"{refusal}\n"
    assert "no store" in said
    assert str(tmp_path / "s") in said
    assert said.count("\n") == 1, "one sentence"
    assert tree(tmp_path) == before


@pytest.mark.parametrize("how", sorted(REFUSALS.keys() - {"server", "import"}))
@pytest.mark.parametrize("kind", ["missing", "empty", "a file"])
def test_commands_make_no_store_where_there_is_none(tmp_path: Path, how: str, kind: str) -> None:
    if kind == "empty":
        (tmp_path / "s").mkdir(mode=0o700)
    elif kind == "a file":
        (tmp_path / "s").write_text("")
    before = tree(tmp_path)
    assert REFUSALS[how](tmp_path / "s", tmp_path / "file") == 2
    assert tree(tmp_path) == before


def test_importing_makes_a_store_in_a_new_and_in_an_empty_folder(tmp_path: Path) -> None:
    source = exported(tmp_path / "t", PROMPT, tmp_path / "file")
    (tmp_path / "empty").mkdir(mode=0o700)
    for name in ("new", "empty"):
        assert transfer.import_prefix(tmp_path / name, source).num_new == 5
        assert (tmp_path / name / "radixserve-store").is_file()


# Folders that are.


def test_a_new_store_is_marked(tmp_path: Path) -> None:
    opened(tmp_path / "s").close()
    text = (tmp_path / "s" / "radixserve-store").read_text()
    assert text.startswith("radixserve store 1\n")


@pytest.mark.parametrize("left", ["lost+found", "radixserve-store.tmp"])
def test_an_empty_file_system_and_an_interrupted_beginning_count_as_empty(
    tmp_path: Path, left: str
) -> None:
    (tmp_path / "s").mkdir(mode=0o700)
    if left == "lost+found":
        (tmp_path / "s" / left).mkdir()
    else:
        (tmp_path / "s" / left).write_text("radix")
    store = opened(tmp_path / "s")
    assert put(store, "a", PROMPT) == loads(store, "a", PROMPT) == 5


@pytest.mark.parametrize("marker", [None, "", "rAdixserve store 1\n"])
def test_a_store_without_its_marker_is_recognised_and_marked_where_that_is_certain(
    tmp_path: Path, marker: str | None
) -> None:
    (tmp_path / "s").mkdir(mode=0o700)
    old_store(tmp_path / "s")
    if marker is not None:
        (tmp_path / "s" / "radixserve-store").write_text(marker)
    before = tree(tmp_path / "s")
    assert transfer.check(tmp_path / "s").problems == []
    after = {name: what for name, what in tree(tmp_path / "s").items() if "index" not in name}
    assert after == {name: what for name, what in before.items() if "index" not in name}
    store = opened(tmp_path / "s")
    assert loads(store, "a", PROMPT) == 5
    assert (tmp_path / "s" / "radixserve-store").read_text().startswith("radixserve store 1\n")


def test_a_marked_store_that_lost_its_index_is_still_one(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", PROMPT)
    store.close()
    (tmp_path / "s" / "index.sqlite").unlink()
    with pytest.raises(StartupError, match="has no index"):
        transfer.check(tmp_path / "s")
    transfer.fix(tmp_path / "s")
    assert loads(opened(tmp_path / "s"), "a", PROMPT) == 5


FOREIGN = (
    "notes.tmp",
    "other.json",
    "index.sqlite.bak",
    "runs/events.out",
    "runs/stray.safetensors",
    "runs/half.tmp",
    f"runs/{'A' * 64}.safetensors",
    f"runs/x{'0' * 64}.safetensors",
)


def test_what_is_not_ours_in_a_store_is_neither_removed_nor_counted(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    store = opened(folder)
    put(store, "a", PROMPT)
    (folder / "runs" / "deeper").mkdir()
    for name in FOREIGN:
        (folder / name).write_bytes(bytes(1 << 20))
    (tmp_path / "outside").write_text("precious")
    for name in (f"runs/{RUN}", f"runs/{RUN}.tmp", "asked.json.tmp.link"):
        (folder / name).symlink_to(tmp_path / "outside")
    others = (*FOREIGN, "runs/deeper", f"runs/{RUN}", f"runs/{RUN}.tmp", "asked.json.tmp.link")
    before = {name: what for name, what in tree(folder).items() if name in others}
    assert store.stats().bytes < 1 << 20
    transfer.check(folder)
    store.clear()
    store.folder.sweep()
    store.close()
    for change in (transfer.fix, transfer.clear):
        change(folder)
    (folder / "index.sqlite").write_bytes(b"damaged")
    store = opened(folder, budget=1 << 20)
    assert put(store, "a", PROMPT) == loads(store, "a", PROMPT) == 5
    store.close()
    after = tree(folder)
    assert {name: after.get(name) for name in before} == before
    assert (tmp_path / "outside").read_text() == "precious"


def test_a_row_that_names_a_file_of_others_does_not_remove_it(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", PROMPT)
    store.close()
    (tmp_path / "s" / "runs" / "precious").write_text("kept")
    connection = sqlite3.connect(tmp_path / "s" / "index.sqlite", isolation_level=None)
    connection.execute("UPDATE runs SET name = 'precious'")
    connection.close()
    store = opened(tmp_path / "s")
    loads(store, "a", PROMPT)
    store.clear()
    assert (tmp_path / "s" / "runs" / "precious").read_text() == "kept"


# Links.


@pytest.mark.parametrize(
    "name", ["lock", "index.sqlite", "index.sqlite-wal", "fingerprints.json", "asked.json"]
)
@pytest.mark.parametrize("target", ["a file", "nothing"])
def test_a_link_in_the_place_of_a_file_of_ours_is_refused_and_not_followed(
    tmp_path: Path, name: str, target: str
) -> None:
    opened(tmp_path / "s").close()
    if target == "a file":
        (tmp_path / "outside").write_text("precious")
    (tmp_path / "s" / name).unlink(missing_ok=True)
    (tmp_path / "s" / name).symlink_to(tmp_path / "outside")
    before = tree(tmp_path)
    for use in (opened, transfer.check, transfer.fix, transfer.clear):
        with pytest.raises(StartupError, match=f"{name} is not a plain file"):
            use(tmp_path / "s")
    assert tree(tmp_path) == before


def test_runs_that_become_a_link_are_refused(tmp_path: Path) -> None:
    opened(tmp_path / "s").close()
    (tmp_path / "s" / "runs").rmdir()
    linked_runs(tmp_path / "s")
    before = tree(tmp_path)
    for use in (opened, transfer.check, transfer.fix, transfer.clear):
        with pytest.raises(StartupError, match="runs is not a folder"):
            use(tmp_path / "s")
    assert tree(tmp_path) == before


def test_a_store_whose_path_is_a_link_is_used(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir(mode=0o700)
    (tmp_path / "s").symlink_to(tmp_path / "volume")
    store = opened(tmp_path / "s")
    assert put(store, "a", PROMPT) == loads(store, "a", PROMPT) == 5
    assert (tmp_path / "volume" / "radixserve-store").is_file()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_run_that_is_no_plain_file_is_a_miss(tmp_path: Path, kind: str) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", PROMPT)
    (path,) = files(tmp_path / "s")
    path.rename(tmp_path / "outside")
    data = (tmp_path / "outside").read_bytes()
    if kind == "link":
        path.symlink_to(tmp_path / "outside")
    else:
        os.mkfifo(path)
    assert loads(store, "a", PROMPT) == 0
    assert put(store, "a", PROMPT) == loads(store, "a", PROMPT) == 5
    assert (tmp_path / "outside").read_bytes() == data


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_what_is_written_does_not_go_through_a_link(tmp_path: Path, kind: str) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", PROMPT)
    (path,) = files(tmp_path / "s")
    store.clear()
    (tmp_path / "outside").write_text("precious")
    unfinished = path.with_name(path.name + ".tmp")
    if kind == "symbolic":
        unfinished.symlink_to(tmp_path / "outside")
    else:
        unfinished.hardlink_to(tmp_path / "outside")
    assert put(store, "a", PROMPT) == loads(store, "a", PROMPT) == 5
    assert (tmp_path / "outside").read_text() == "precious"


def test_a_folder_that_is_exchanged_while_it_is_used_is_not_written_to(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", PROMPT)
    (tmp_path / "s").rename(tmp_path / "moved")
    (tmp_path / "s").mkdir()
    tensorboard(tmp_path / "s")
    before = tree(tmp_path / "s")
    assert put(store, "b", PROMPT) == 5
    store.folder.sweep()
    store.clear()
    with pytest.raises(OSError, match="another folder"):
        Index(store.folder.disk, tmp_path / "s" / "index.sqlite")
    store.close()
    assert tree(tmp_path / "s") == before
    assert files(tmp_path / "moved") == []


def test_an_export_leaves_the_files_beside_its_target_alone(tmp_path: Path) -> None:
    (tmp_path / "file.tmp").write_text("precious")
    exported(tmp_path / "t", PROMPT, tmp_path / "file")
    assert (tmp_path / "file.tmp").read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"t", "file", "file.tmp"}


def test_an_export_replaces_a_file_only_when_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(tmp_path / "t", PROMPT, tmp_path / "file")
    target = tmp_path / "mine"
    target.write_text("precious")
    export = ["cache", "export", str(tmp_path / "t"), files(tmp_path / "t")[0].name, str(target)]
    assert main(export) == 2
    assert capsys.readouterr().err == f"radixserve: {target} exists already; --force replaces it\n"
    assert target.read_text() == "precious"
    assert main([*export, "--force"]) == 0
    assert target.read_bytes() == (tmp_path / "file").read_bytes()


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_an_export_never_replaces_what_is_no_plain_file(tmp_path: Path, kind: str) -> None:
    exported(tmp_path / "t", PROMPT, tmp_path / "file")
    target, name = tmp_path / "mine", files(tmp_path / "t")[0].name
    if kind == "folder":
        target.mkdir()
    elif kind == "link":
        target.symlink_to("file")
    else:
        os.mkfifo(target)
    for force in (False, True):
        with pytest.raises(StartupError, match="exists already and is no plain file"):
            transfer.export_prefix(tmp_path / "t", name, target, force=force)
    assert not target.is_file() or target.is_symlink()


# Who may write there, and who may read.


@pytest.mark.parametrize("where", [".", "runs"])
@pytest.mark.parametrize(
    ("mode", "who"), [(0o777, "everybody"), (0o770, "its group"), (0o702, "everybody")]
)
def test_a_folder_that_others_can_write_to_is_refused_unless_they_are_trusted(
    tmp_path: Path, where: str, mode: int, who: str
) -> None:
    folder = tmp_path / "s"
    opened(folder).close()
    (folder / where).chmod(mode)
    for use in (opened, transfer.check, transfer.fix, transfer.clear):
        with pytest.raises(StartupError, match=f"can be written by {who}.*trust"):
            use(folder)
    assert transfer.check(folder, trust_others=True).problems == []
    assert main(["cache", "ls", "--trust-others", str(folder)]) == 0
    StoreFolder(folder, PLENTY, Disk(), trust_others=True).close()


def test_an_empty_folder_that_others_can_write_to_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s").chmod(0o775)
    with pytest.raises(StartupError, match="can be written by its group"):
        opened(tmp_path / "s")
    assert list((tmp_path / "s").iterdir()) == []


def test_a_folder_of_another_user_is_refused_unless_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, owner = tmp_path / "s", os.geteuid()
    opened(folder).close()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    for use in (opened, transfer.check, transfer.fix, transfer.clear):
        with pytest.raises(StartupError, match="belongs to another user"):
            use(folder)
    StoreFolder(folder, PLENTY, Disk(), trust_others=True).close()


def test_all_files_are_the_owners_alone_whatever_the_folder_and_they_were(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    folder.chmod(0o755)
    before = os.umask(0)
    try:
        for _ in range(2):
            store = opened(folder)
            put(store, "a", PROMPT)
            modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
            assert modes.pop("runs") == 0o700
            assert {"index.sqlite", "index.sqlite-wal", "index.sqlite-shm", "lock"} <= set(modes)
            assert set(modes.values()) == {0o600}
            assert {path.stat().st_mode & 0o777 for path in files(folder)} == {0o600}
            store.close()
            for name in ("index.sqlite", "lock", "radixserve-store"):
                (folder / name).chmod(0o666)
    finally:
        os.umask(before)


# The names.


def test_the_names_of_ours() -> None:
    assert layout.is_run(RUN)
    assert layout.is_run(RUN + ".tmp")
    assert not layout.is_run(RUN + ".tmp.tmp")
    assert not layout.is_run("a.safetensors")
    assert not layout.is_run(f"{RUN}\n")
    assert not layout.is_file_of_store(RUN)
    assert not layout.is_file_of_store("runs")
    assert not layout.is_leftover("radixserve-store")


def test_damage_of_every_file_of_the_folder_is_not_the_end_of_the_store(tmp_path: Path) -> None:
    """Each of them in turn empty, cut, or with a bit that is another."""
    for number, how in enumerate(("empty", "cut", "flipped")):
        for name in ("radixserve-store", "lock", "index.sqlite", "fingerprints.json", "asking"):
            folder = tmp_path / f"{number}-{name}"
            store = opened(folder)
            put(store, "a", PROMPT)
            store.close()
            path = folder / name
            if not path.exists() or not path.stat().st_size:
                path.write_text("{}")
            if how == "flipped":
                flip(path, 3)
            else:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 * (how == "cut")])
            store = opened(folder)
            loads(store, "a", PROMPT)
            put(store, "a", PROMPT)
            assert loads(store, "a", PROMPT) == 5
            store.close()

"""`radixserve cache` beside a process that holds the folder: that one does what is asked, or says
why not.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from radixserve.errors import StartupError
from radixserve.prefix import Prefix
from radixserve.store.admin import errands, tools, transfer
from radixserve.store.admin.changes import mending
from radixserve.store.admin.errands import Attendant, Bring, Clear, Mend
from radixserve.store.folder.disk import Disk
from radixserve.store.folder.disk_store import DiskStore
from radixserve.store.folder.lock import is_attended
from radixserve.store.format.run_file import read_header
from tests.store.folder.test_faults import BUDGET, PROMPTS, sound, use
from tests.store.parts import FailingDisk, files, flip, loads, on_disk, opened, put, wide

PROMPT = [1, 2, 3, 4, 5]
LEFT = {"asked.json", "begun.json", "answered.json"}


@contextlib.contextmanager
def attended(store: DiskStore) -> Iterator[Attendant]:
    """A thread that does errands while the block runs."""
    attendant, ending = Attendant(store), threading.Event()

    def look_out() -> None:
        while not ending.wait(0.005):
            while attendant.asked and not ending.is_set():
                with contextlib.suppress(OSError):
                    while not attendant.work():
                        pass

    thread = threading.Thread(target=look_out)
    thread.start()
    try:
        yield attendant
    finally:
        ending.set()
        thread.join()


def exported(folder: Path, tokens: list[int], target: Path, model: str = "model-a") -> Path:
    """A file with this prefix, made by another store."""
    store = opened(folder, model=model)
    put(store, "a", tokens)
    row = store._folder.index.walk(model, Prefix.of("a", tokens))[-1].row
    transfer.export_prefix(folder, row.name, target)
    store.close()
    return target


def nothing_is_left(folder: Path) -> bool:
    return not LEFT & {path.name for path in folder.iterdir()}


def test_clear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", PROMPT)
    put(store, "b", PROMPT)
    with attended(store):
        assert tools.clear(tmp_path / "s") == 0
        assert capsys.readouterr().out == "2 runs removed\n"
        assert tools.clear(tmp_path / "s") == 0
        assert capsys.readouterr().out == "0 runs removed\n"
    assert (store.stats().runs, files(tmp_path / "s")) == (0, [])
    assert nothing_is_left(tmp_path / "s")
    assert put(store, "a", PROMPT) == loads(store, "a", PROMPT) == 5


def test_import_of_this_and_of_another_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", PROMPT[:3])
    ours = exported(tmp_path / "t", PROMPT, tmp_path / "ours")
    theirs = exported(tmp_path / "t", PROMPT, tmp_path / "theirs", model="model-b")
    with attended(store):
        assert tools.import_prefix(tmp_path / "s", ours) == 0
        assert "5 tokens of model model-a, 2 of them new" in capsys.readouterr().out
        brought = transfer.import_prefix(tmp_path / "s", theirs)
        assert (brought.fingerprint, brought.num_tokens, brought.num_new) == ("model-b", 5, 5)
        assert transfer.import_prefix(tmp_path / "s", ours).num_new == 0
    assert loads(store, "a", PROMPT) == 5
    assert nothing_is_left(tmp_path / "s")
    store.close()
    assert loads(opened(tmp_path / "s", model="model-b"), "a", PROMPT) == 5


def test_a_file_is_found_from_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path / "s")
    exported(tmp_path / "t", PROMPT, tmp_path / "ours")
    monkeypatch.chdir(tmp_path)
    with attended(store):
        assert transfer.import_prefix(Path("s"), Path("ours")).num_new == 5


def test_an_error_of_the_system_is_one_sentence_with_the_users_own_path(tmp_path: Path) -> None:
    missing, folder = tmp_path / "missing", tmp_path / "t"
    with pytest.raises(StartupError) as refused:
        transfer.import_prefix(tmp_path / "s", missing)
    assert str(refused.value) == f"cannot import {missing}: No such file or directory"
    with pytest.raises(StartupError, match="No such file or directory") as refused:
        exported(folder, PROMPT, missing / "file")
    assert f"to {missing / 'file'}: No such file or directory" in str(refused.value)
    assert "Errno" not in str(refused.value)


def test_one_of_a_thing_is_told_in_the_singular(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(tmp_path / "t", PROMPT[:1], tmp_path / "file")
    tools.ls(tmp_path / "t")
    assert "1 run, 1 token, " in capsys.readouterr().out
    tools.check(tmp_path / "t", fix=False)
    assert capsys.readouterr().out == "1 run verified, 0 problems found\n"
    tools.clear(tmp_path / "t")
    assert capsys.readouterr().out == "1 run removed\n"


@pytest.mark.parametrize("kind", ["damaged", "missing", "a folder", "no export"])
def test_what_cannot_be_imported_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    store, source = opened(tmp_path / "s"), tmp_path / "file"
    if kind == "damaged":
        flip(exported(tmp_path / "t", PROMPT, source), -9)
    elif kind == "a folder":
        source.mkdir()
    elif kind == "no export":
        source.write_bytes(b"\x80\x04cposix\nsystem\n(S'true'\ntR.")
    with attended(store), pytest.raises(StartupError, match=f"cannot import {source}"):
        transfer.import_prefix(tmp_path / "s", source)
    assert store.stats().runs == 0
    assert nothing_is_left(tmp_path / "s")
    assert put(store, "a", PROMPT) == 5


def test_a_run_that_is_no_beginning_is_no_export(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", PROMPT[:2])
    put(store, "a", PROMPT)
    rest = next(path for path in files(tmp_path / "s") if read_header(Disk(), path).start)
    with attended(store), pytest.raises(StartupError, match="begins at position 2"):
        transfer.import_prefix(tmp_path / "s", rest)


def test_an_import_keeps_the_budget_evicting_what_is_cold(tmp_path: Path) -> None:
    other = wide(tmp_path / "t")
    put(other, "a", [9] * 6)
    transfer.export_prefix(tmp_path / "t", files(tmp_path / "t")[0].name, tmp_path / "file")
    put(other, "b", [9] * 80)
    large = next(
        path for path in files(tmp_path / "t") if read_header(Disk(), path).namespace == "b"
    )
    store = wide(tmp_path / "s", BUDGET)
    put(store, "a", [1] * 8)
    put(store, "a", [4] * 8)
    assert loads(store, "a", [1] * 8) == 8
    with attended(store):
        assert transfer.import_prefix(tmp_path / "s", tmp_path / "file").num_new == 6
        assert on_disk(tmp_path / "s") == store.stats().bytes <= BUDGET
        with pytest.raises(StartupError, match="no room"):
            transfer.import_prefix(tmp_path / "s", large)
    assert on_disk(tmp_path / "s") == store.stats().bytes <= BUDGET
    assert [loads(store, "a", [first] * 6) for first in (9, 4, 1)] == [6, 0, 6]


def test_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = opened(tmp_path / "s")
    for tokens in (PROMPT, [*PROMPT, 6], [7, 8]):
        put(store, "a", tokens)
    bad = next(path for path in files(tmp_path / "s") if read_header(Disk(), path).num_tokens == 5)
    flip(bad, -9)
    stray = "0" * 64 + ".safetensors"
    (tmp_path / "s" / "runs" / stray).write_text("no row")
    with attended(store):
        assert tools.check(tmp_path / "s", fix=True) == 1
        said = capsys.readouterr().out
        assert f"{bad.name}: the digest differs" in said
        assert f"{stray}: a file without a row" in said
        assert "2 runs verified, 2 problems removed" in said
        assert tools.check(tmp_path / "s", fix=True) == 0
    assert [loads(store, "a", tokens) for tokens in (PROMPT, [7, 8])] == [0, 2]
    assert len(files(tmp_path / "s")) == store.stats().runs == 1


def test_other_work_goes_on_between_the_parts_of_a_mend(tmp_path: Path) -> None:
    store = wide(tmp_path / "s", BUDGET)
    use(store)
    draw, parts = itertools.cycle(range(7)), mending(store.folder)
    with contextlib.suppress(StopIteration):
        while True:
            next(parts)
            tokens = [next(draw), next(draw), 8]
            put(store, "a", tokens)  # evicts what was about to be verified
            loads(store, "a", tokens)
    store.close()
    sound(tmp_path / "s")


# Who is gone, does not answer, or answers somebody else.


def asked_for(folder: Path, errand: Clear | Mend | Bring) -> None:
    """As a command leaves it that has gone."""
    (folder / "asked.json").write_bytes(errands.msgspec.json.encode(errands.Asked("1", errand)))  # type: ignore[attr-defined]


def test_what_a_command_asked_that_is_gone_is_not_done(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", PROMPT)
    asked_for(tmp_path / "s", Clear())
    attendant = Attendant(store)
    assert attendant.asked
    assert attendant.work()
    assert nothing_is_left(tmp_path / "s")
    assert loads(store, "a", PROMPT) == 5


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"number": "1", "errand": {"type": "format"}}', "\x00" * 100]
)
def test_what_is_no_errand_is_removed(tmp_path: Path, text: str) -> None:
    store = opened(tmp_path / "s")
    (tmp_path / "s" / "asked.json").write_text(text)
    assert Attendant(store).work()
    assert nothing_is_left(tmp_path / "s")


def test_what_dead_ones_left_is_removed_by_whoever_opens_the_folder(tmp_path: Path) -> None:
    opened(tmp_path / "s").close()
    for name in (*LEFT, "asked.json.tmp"):
        (tmp_path / "s" / name).write_text("{}")
    opened(tmp_path / "s").close()
    assert {path.name for path in (tmp_path / "s").iterdir()} == {
        "radixserve-store",
        "index.sqlite",
        "lock",
        "runs",
    }


def test_a_command_that_is_interrupted_takes_back_what_it_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", PROMPT)
    attendant = Attendant(store)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transfer.clear(tmp_path / "s")
    assert not attendant.asked
    assert nothing_is_left(tmp_path / "s")
    assert loads(store, "a", PROMPT) == 5


def test_an_answer_to_somebody_else_is_not_taken(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", PROMPT)
    Attendant(store)
    (tmp_path / "s" / "answered.json").write_bytes(
        errands.msgspec.json.encode(errands.Answer("0", num_removed=7))  # type: ignore[attr-defined]
    )
    with attended(store):
        assert transfer.clear(tmp_path / "s") == 1


def test_two_commands_do_not_ask_at_a_time(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    Attendant(store)
    with (
        errands._turn(Disk(), tmp_path / "s"),
        pytest.raises(StartupError, match="another command"),
    ):
        transfer.clear(tmp_path / "s")


def test_a_process_that_does_no_errands_is_not_asked(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    Attendant(store)
    store.close()
    store = opened(tmp_path / "s")  # in the same folder, after one that did
    put(store, "a", PROMPT)
    assert not is_attended(Disk(), tmp_path / "s")
    source = exported(tmp_path / "t", PROMPT, tmp_path / "file")
    changes: list[Callable[[], object]] = [
        lambda: transfer.clear(tmp_path / "s"),
        lambda: transfer.fix(tmp_path / "s"),
        lambda: transfer.import_prefix(tmp_path / "s", source),
    ]
    for change in changes:
        with pytest.raises(StartupError, match="in use by another process"):
            change()
    assert loads(store, "a", PROMPT) == 5


def test_a_server_that_ends_or_does_not_begin_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path / "s")
    Attendant(store)
    monkeypatch.setattr(errands, "BEGIN_SECONDS", 0.1)
    with pytest.raises(StartupError, match="does not answer"):
        transfer.clear(tmp_path / "s")
    threading.Timer(0.2, store.close).start()
    monkeypatch.setattr(errands, "BEGIN_SECONDS", 30.0)
    with pytest.raises(StartupError, match="has ended"):
        transfer.clear(tmp_path / "s")
    assert nothing_is_left(tmp_path / "s")


# Whatever fails.


@pytest.mark.slow
def test_whatever_step_of_an_errand_fails_it_ends_and_the_folder_stays_sound(
    tmp_path: Path,
) -> None:
    source = exported_wide(tmp_path)
    for k in itertools.count(1):
        folder, disk = tmp_path / str(k), FailingDisk()
        store = wide(folder, BUDGET, disk)
        with attended(store):
            disk.arm(k, persistent=False)
            for change in (
                lambda f: transfer.import_prefix(f, source),
                transfer.fix,
                transfer.clear,
            ):
                with contextlib.suppress(StartupError):
                    change(folder)
        disk.heal()
        assert on_disk(folder) <= BUDGET
        store.close()
        sound(folder)
        assert nothing_is_left(folder)
        if not disk.fired:
            break
    assert k > 50, "errands have fewer steps than they had"


def exported_wide(tmp_path: Path) -> Path:
    store = wide(tmp_path / "other")
    put(store, *PROMPTS[1])
    transfer.export_prefix(tmp_path / "other", files(tmp_path / "other")[0].name, tmp_path / "file")
    store.close()
    return tmp_path / "file"


def test_the_files_of_an_errand_are_the_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Attendant(opened(tmp_path / "s"))
    modes: list[int] = []

    def look(seconds: float) -> None:
        modes.extend(
            os.stat(tmp_path / "s" / name).st_mode & 0o777 for name in ("asking", "asked.json")
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", look)
    with pytest.raises(KeyboardInterrupt):
        transfer.clear(tmp_path / "s")
    assert modes == [0o600, 0o600]


def test_an_error_that_nobody_foresaw_is_answered_and_the_next_errand_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path / "s")
    put(store, "a", PROMPT)
    with attended(store):
        with monkeypatch.context() as patch:
            patch.setattr(store.folder, "clear", lambda: [][0])
            with pytest.raises(StartupError, match=r"could not do it.*IndexError"):
                transfer.clear(tmp_path / "s")
        assert transfer.clear(tmp_path / "s") == 1
    assert nothing_is_left(tmp_path / "s")

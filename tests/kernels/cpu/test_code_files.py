"""Compiled kernels are kept where nobody else can write, and what is damaged is compiled anew."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radixserve import cache_folder
from radixserve.kernels.cpu import code_files, native, threads
from radixserve.kernels.cpu.block import Block, Int64s
from radixserve.kernels.cpu.code_files import Code

CODE = Code("work", bytes(range(256)) * 8)
NAME = "module.work-0123"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RADIXSERVE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(code_files, "_told", set())
    return tmp_path / "cache" / "kernels"


def test_what_was_kept_is_read_by_its_name_only(folder: Path) -> None:
    assert code_files.read(NAME) is None
    code_files.keep(NAME, CODE)
    assert code_files.read(NAME) == CODE
    (folder / "other").write_bytes((folder / NAME).read_bytes())
    assert code_files.read("other") is None


def test_only_this_user_can_look_into_the_folder(folder: Path) -> None:
    code_files.keep(NAME, CODE)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in folder.iterdir()] == [NAME]
    assert (folder / NAME).stat().st_mode & 0o777 == 0o600


def flipped(data: bytes) -> bytes:
    return data[:700] + bytes([data[700] ^ 1]) + data[701:]


DAMAGE = {
    "cut": lambda data: data[:-1],
    "cut in the header": lambda data: data[:10],
    "empty": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "flipped": flipped,
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found_and_written_over(
    damage: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code_files.keep(NAME, CODE)
    (folder / NAME).write_bytes(damage((folder / NAME).read_bytes()))
    assert code_files.read(NAME) is None
    assert "is damaged; it is compiled anew" in caplog.text
    code_files.keep(NAME, CODE)
    assert code_files.read(NAME) == CODE


class Bomb:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return os._exit, (77,)


def test_a_pickle_in_the_place_of_a_kernel_is_not_run(folder: Path) -> None:
    code_files.keep(NAME, CODE)
    (folder / NAME).write_bytes(pickle.dumps(Bomb()))
    assert code_files.read(NAME) is None


def open_to_the_group(folder: Path) -> None:
    folder.chmod(0o770)


def open_to_all(folder: Path) -> None:
    folder.chmod(0o707)


def linked(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def file_open_to_all(folder: Path) -> None:
    (folder / NAME).chmod(0o666)


def file_linked(folder: Path) -> None:
    (folder / NAME).rename(folder / "elsewhere")
    (folder / NAME).symlink_to("elsewhere")


@pytest.mark.parametrize(
    "spoil", [open_to_the_group, open_to_all, linked, file_open_to_all, file_linked]
)
def test_what_others_could_have_written_is_not_read(spoil: Any, folder: Path) -> None:
    code_files.keep(NAME, CODE)
    spoil(folder)
    assert code_files.read(NAME) is None


def test_nothing_is_kept_where_others_can_write_and_one_sentence_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    for _ in range(2):
        code_files.keep(NAME, CODE)
    assert list(folder.iterdir()) == []
    assert [record.getMessage() for record in caplog.records] == [
        f"compiled kernels are not kept, other users can write to {folder} (chmod go-w makes it "
        "usable); set RADIXSERVE_CACHE_DIR to a folder of your own"
    ]


@pytest.mark.parametrize("uid", [0, 1000])
def test_root_and_this_user_are_believed_and_others_are_not(
    uid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    of = os.stat_result((0o40755, 0, 0, 1, uid, 0, 0, 0, 0, 0))
    cache_folder.check_owner(of, "/cache")
    other = os.stat_result((0o40755, 0, 0, 1, 1001, 0, 0, 0, 0, 0))
    with pytest.raises(OSError, match=r"/cache belongs to another user \(uid 1001\)"):
        cache_folder.check_owner(other, "/cache")


def test_a_folder_that_cannot_be_made_is_one_sentence_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RADIXSERVE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    code_files.keep(NAME, CODE)
    assert code_files.read(NAME) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"compiled kernels are not kept, {tmp_path}/file/cache: Not a directory; "
        "set RADIXSERVE_CACHE_DIR to a folder of your own"
    ]


def test_without_a_home_folder_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("RADIXSERVE_CACHE_DIR")
    monkeypatch.setattr(Path, "home", homeless)
    code_files.keep(NAME, CODE)
    assert code_files.read(NAME) is None
    assert "this user has no home folder; set RADIXSERVE_CACHE_DIR" in caplog.text


def test_a_disk_that_fills_up_leaves_what_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    code_files.keep(NAME, CODE)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    code_files.keep(NAME, Code("work", b"newer"))
    assert [file.name for file in folder.iterdir()] == [NAME]
    assert code_files.read(NAME) == CODE
    assert "No space left on device" in caplog.text


@contextmanager
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 100 bytes, the one that pytest prints to included."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_cannot_be_written_whole_is_removed(folder: Path) -> None:
    with small_files():
        code_files.keep(NAME, CODE)
    assert list(folder.iterdir()) == []


class Counter(Block):
    value: Int64s  # [1]


def add_one(address: Any) -> None:
    Counter.read(address).value[0] += 1


def added() -> int:
    native._address.cache_clear()
    numbers = np.array([41], np.int64)
    threads.run(native.address(add_one), Counter(value=numbers).address, False)
    return int(numbers[0])


def test_a_kernel_is_compiled_once_and_again_where_its_file_is_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilations: list[object] = []
    compile_it = native._compile
    monkeypatch.setattr(
        native,
        "_compile",
        lambda *which: compilations.append(which) or compile_it(*which),  # type: ignore[func-returns-value]
    )
    assert [added(), added(), len(compilations)] == [42, 42, 1]
    [file] = folder.iterdir()
    file.write_bytes(flipped(file.read_bytes()))
    assert [added(), added(), len(compilations)] == [42, 42, 2]


def test_a_kernel_works_where_nothing_can_be_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RADIXSERVE_CACHE_DIR", "/dev/null/cache")
    with caplog.at_level(logging.INFO):
        assert [added(), added()] == [42, 42]
    assert caplog.text.count("compiled kernels are not kept") == 1


@pytest.mark.slow
def test_code_that_was_kept_is_linked_in_another_process(folder: Path) -> None:
    program = (
        "import sys; from tests.kernels.cpu.test_code_files import added, native\n"
        "if len(sys.argv) > 1: native._compile = None\n"
        "sys.exit(added())"
    )
    for options in ([], ["kept"]):
        command = [sys.executable, "-c", program, *options]
        assert subprocess.run(command, check=False).returncode == 42
    assert len(list(folder.iterdir())) == 1

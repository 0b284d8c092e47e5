"""Files written past the page cache: the same bytes whatever the parts, and the usual way where
that cannot be done.
"""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.store.folder import direct
from radixserve.store.folder.direct import LEAST_BYTES, DirectWriter
from radixserve.store.folder.disk import Disk

sizes = st.lists(
    st.sampled_from((0, 1, 4095, 4096, 70_000, LEAST_BYTES - 1, LEAST_BYTES, LEAST_BYTES + 5)),
    max_size=5,
)


def bytes_of(count: int) -> bytes:
    return random.Random(count).randbytes(count)


@given(sizes=sizes)
@settings(max_examples=40, deadline=None)
def test_a_file_is_what_its_parts_are(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    path = tmp_path_factory.mktemp("direct") / "file"
    parts = [memoryview(bytes_of(size)) for size in sizes]
    Disk().write(path, parts)
    assert path.read_bytes() == b"".join(parts)
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_buffer_is_used_again_and_a_longer_file_is_replaced(tmp_path: Path) -> None:
    writer = DirectWriter()

    def create(flags: int) -> int:
        return os.open(tmp_path / "file", flags | os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    for size in (3 * LEAST_BYTES, LEAST_BYTES + 17, 5):
        if not writer.write(create, [bytes_of(size)]):
            pytest.skip("this file system has no direct writes")
        assert (tmp_path / "file").read_bytes() == bytes_of(size)


@pytest.mark.parametrize("where", ["open", "write"])
def test_where_it_cannot_be_done_the_file_is_written_the_usual_way(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open, real_write = os.open, os.write

    def open_(path: Path, flags: int, mode: int = 0o777) -> int:
        if where == "open" and flags & direct._DIRECT:
            raise OSError(errno.EINVAL, "no direct writes")
        return real_open(path, flags, mode)

    def write(file: int, data: memoryview) -> int:
        raise OSError(errno.EINVAL, "not aligned") if where == "write" else real_write(file, data)  # type: ignore[misc]

    monkeypatch.setattr("radixserve.store.folder.direct.os.open", open_)
    monkeypatch.setattr("radixserve.store.folder.direct.os.write", write)
    disk = Disk()
    for number in range(2):
        disk.write(tmp_path / str(number), [bytes_of(2 * LEAST_BYTES)])
        assert (tmp_path / str(number)).read_bytes() == bytes_of(2 * LEAST_BYTES)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("radixserve.store.folder.direct.os.write", full)
    with pytest.raises(OSError, match="No space left"):
        Disk().write(tmp_path / "file", [bytes_of(2 * LEAST_BYTES)])

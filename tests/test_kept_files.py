"""Files that are kept in the cache folder; what damages them is tested with compiled kernels
(`tests/kernels/cpu/test_code_files.py`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from radixserve.kept_files import Damaged, KeptFiles


def test_each_kind_reads_only_its_own_form(tmp_path: Path) -> None:
    first, second = (KeptFiles(str(tmp_path / "kept"), magic) for magic in (b"1\n", b"2\n"))
    assert first.read("name") is None
    first.keep("name", b"content")
    assert first.read("name") == b"content"
    with pytest.raises(Damaged):
        second.read("name")


def test_only_the_newest_files_stay(tmp_path: Path) -> None:
    kept = KeptFiles(str(tmp_path / "kept"), b"1\n", most=3)
    for number in range(6):
        kept.keep(f"{number}", b"content")
        os.utime(tmp_path / "kept" / f"{number}", (number, number))
    kept.keep("0", b"again")
    assert sorted(each.name for each in (tmp_path / "kept").iterdir()) == ["0", "4", "5"]

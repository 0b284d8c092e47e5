"""torch finds a folder for temporary files wherever the server runs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from radixserve.checkpoints import temporary
from radixserve.checkpoints.temporary import ensure_temporary_folder


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the file system in memory; the choice of a folder is open again."""
    monkeypatch.setattr(temporary, "MEMORY", tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", "")  # so that whatever the test sets is undone
    monkeypatch.delenv("TMPDIR")
    return tmp_path


def test_a_usual_folder_is_used_where_one_can_be_written() -> None:
    ensure_temporary_folder()
    assert "TMPDIR" not in os.environ


def test_without_a_usual_folder_memory_is_used(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tempfile, "_candidate_tempdir_list", lambda: [os.environ.get("TMPDIR", "/dev/null/none")]
    )
    ensure_temporary_folder()
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(memory)

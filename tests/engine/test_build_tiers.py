"""What stored K/V belongs to: a change of anything that computes it makes it another's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import radixserve
from radixserve.engine import computed_by
from radixserve.engine.computed_by import COMPUTES, code
from radixserve.store.folder.fingerprint import tree_digest

PACKAGE = Path(radixserve.__file__).parent


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package."""
    skip = shutil.ignore_patterns("__pycache__", "workloads", "html")
    return Path(shutil.copytree(PACKAGE, tmp_path / "radixserve", ignore=skip))


def files_of(tree: Path, names: tuple[str, ...]) -> list[Path]:
    return sorted(
        path
        for name in names
        for path in [tree / name, *(tree / name).rglob("*")]
        if path.is_file()
    )


def test_a_change_of_each_file_that_computes_is_another_digest(tree: Path) -> None:
    digests = {tree_digest(tree, COMPUTES)}
    paths = files_of(tree, COMPUTES)
    assert {
        "linear.py",
        "rowwise.py",
        "decoder.py",
        "kv.py",
        "panels.py",
        "opened.py",
        "flight.py",
        "step.py",
    } <= {path.name for path in paths}
    for number, path in enumerate(paths, 1):
        path.write_bytes(path.read_bytes() + b"#")
        digests.add(tree_digest(tree, COMPUTES))
        assert len(digests) == number + 1, path


def test_a_file_that_comes_goes_or_is_renamed_is_another_digest(tree: Path) -> None:
    digests = {tree_digest(tree, COMPUTES)}
    (tree / "model" / "new.bin").write_bytes(b"")
    digests.add(tree_digest(tree, COMPUTES))
    (tree / "model" / "new.bin").rename(tree / "model" / "newer.bin")
    digests.add(tree_digest(tree, COMPUTES))
    (tree / "model" / "decoder.py").unlink()
    digests.add(tree_digest(tree, COMPUTES))
    assert len(digests) == 4


def test_what_computes_nothing_is_no_part_of_it(tree: Path) -> None:
    before = tree_digest(tree, COMPUTES)
    (tree / "api" / "sse.py").write_text("")
    (tree / "sampling" / "draw.py").write_text("")
    (tree / "model" / "__pycache__").mkdir()
    (tree / "model" / "__pycache__" / "decoder.pyc").write_bytes(b"compiled")
    assert tree_digest(tree, COMPUTES) == before


def test_our_version_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code()
    assert before == code()
    monkeypatch.setattr(radixserve, "__version__", "99.0")
    assert code() != before


@pytest.mark.parametrize("name", computed_by._BUILT_WITH)
def test_the_version_of_each_package_it_is_built_with_is_part_of_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before, version = code(), computed_by.version  # type: ignore[attr-defined]
    monkeypatch.setattr(
        computed_by, "version", lambda each: "99.0" if each == name else version(each)
    )
    assert code() != before

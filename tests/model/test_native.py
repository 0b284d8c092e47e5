"""Compiled code is kept under a digest of every source file that it depends on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from radixserve.model import native

FOLDER = Path(native.__file__).parent
KERNELS = ("tile_kernel", "few_rows", "codes", "program")


@pytest.mark.parametrize("module", KERNELS)
def test_a_change_of_any_file_that_a_kernel_imports_changes_its_digest(
    module: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = native.sources_digest(module, folder)
    assert before == native.sources_digest(module)
    for path in native.sources_of(module, folder):
        content = path.read_bytes()
        path.write_bytes(content + b"# changed\n")
        assert native.sources_digest(module, folder) != before, path.name
        path.write_bytes(content)
    assert native.sources_digest(module, folder) == before


def test_the_sources_of_a_kernel_are_those_that_it_reaches_by_imports() -> None:
    names = {path.stem for path in native.sources_of("tile_kernel")}
    assert {"tile_kernel", "tile_loads", "tile_scratch", "step_block", "lanes", "products"} <= names
    assert "loader" not in names
    coded = {path.stem for path in native.sources_of("few_rows")}
    assert {"coded_products", "codes", "compiled"} <= coded

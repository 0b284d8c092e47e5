"""Compiled code is kept under a digest of every source file that it depends on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from radixserve.kernels.cpu import native

FOLDER = Path(native.__file__).parent
KERNELS = ("attention", "gemm_vectors", "gemm_tiles", "quantised", "program", "rows", "lookup")


@pytest.mark.parametrize("module", KERNELS)
def test_a_change_of_any_file_that_a_kernel_imports_changes_its_digest(
    module: str, tmp_path: Path
) -> None:
    folder = tmp_path / "cpu"
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
    names = {path.stem for path in native.sources_of("attention")}
    assert {
        "attention",
        "attention_loads",
        "attention_memory",
        "attention_block",
        "vector",
        "products",
    } <= names
    assert "gemm" not in names
    coded = {path.stem for path in native.sources_of("gemm")}
    assert {"quantised_products", "quantised", "compile"} <= coded

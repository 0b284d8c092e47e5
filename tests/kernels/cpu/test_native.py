"""Compiled code is kept under a digest of every source file that it depends on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from radixserve.kernels.cpu import native

FOLDER = Path(native.__file__).parent
KERNELS = (
    "attention.kernel",
    "attention.amx",
    "attention.pairs",
    "gemm.vectors",
    "gemm.amx",
    "gemm.integers",
    "gemm.codes",
    "gemm.quantised",
    "gemm.lookup",
    "program",
    "rows",
)


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
    attention = sources("attention.kernel")
    assert {"vector.py", "products.py"} <= attention
    assert {f"attention/{name}.py" for name in ("kernel", "loads", "memory", "block")} <= attention
    assert not any(name.startswith("gemm/") for name in attention)
    call = sources("gemm.call")
    assert {"compile.py", "amx.py", "block.py"} <= call
    assert {f"gemm/{name}.py" for name in ("call", "vectors", "amx", "block", "quantised")} <= call


def sources(module: str) -> set[str]:
    return {path.relative_to(FOLDER).as_posix() for path in native.sources_of(module)}

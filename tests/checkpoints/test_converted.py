"""A model is converted once, whatever happens meanwhile; what is kept is verified."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from radixserve.cache_folder import cache_dir
from radixserve.checkpoints import converted as module
from radixserve.checkpoints.converted import LINKED, converted
from radixserve.errors import ModelRefused
from tests.signals import usual_signals

NAME = "tiny-v1"
WEIGHTS = "model.safetensors"
TEMPORARY = "radixserve-model-"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RADIXSERVE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_ready", {})
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "cache" / "models"


class Conversion:
    """Stands in for the child process: counts, and writes a model."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, source: Path, target: Path, label: str | None, weights: str) -> None:
        self.count += 1
        (target / WEIGHTS).write_bytes(b"weights")
        (target / "config.json").write_bytes(b"{}")


@pytest.fixture
def conversion(monkeypatch: pytest.MonkeyPatch) -> Conversion:
    made = Conversion()
    monkeypatch.setattr(module, "_run_conversion", made)
    return made


def the_model() -> Path:
    """As a process that has just started finds it."""
    module._ready.clear()
    return converted(lambda: Path("tiny.gguf"), NAME, progress=False)


def test_the_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("RADIXSERVE_CACHE_DIR")
    assert cache_dir() == Path.home() / ".cache" / "radixserve"


def test_the_second_process_converts_nothing_and_does_not_ask_for_the_source(
    conversion: Conversion,
) -> None:
    folder = the_model()
    module._ready.clear()
    assert converted(lambda: Path("/") / str(1 / 0), NAME, progress=False) == folder
    assert conversion.count == 1
    assert sorted(file.name for file in folder.iterdir()) == ["SHA256SUMS", "config.json", WEIGHTS]
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, check=False)
    assert checked.returncode == 0


def test_one_process_reads_a_model_once(
    conversion: Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = the_model()
    monkeypatch.delattr(module, "_sha256")
    assert converted(lambda: Path("tiny.gguf"), NAME, progress=False) == folder


DAMAGE = {
    "flipped": lambda folder: (folder / WEIGHTS).write_bytes(b"weighty"),
    "cut": lambda folder: (folder / WEIGHTS).write_bytes(b"weight"),
    "empty": lambda folder: (folder / "config.json").write_bytes(b""),
    "missing": lambda folder: (folder / WEIGHTS).unlink(),
    "no sums": lambda folder: (folder / "SHA256SUMS").unlink(),
    "empty sums": lambda folder: (folder / "SHA256SUMS").write_bytes(b""),
    "zeroed sums": lambda folder: (folder / "SHA256SUMS").write_bytes(bytes(100)),
    "a line less": lambda folder: (folder / "SHA256SUMS").write_text(
        (folder / "SHA256SUMS").read_text().partition("\n")[2]
    ),
    "no text": lambda folder: (folder / "SHA256SUMS").write_bytes(b"\xff" * 100),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_model_is_converted_anew_in_its_place(
    damage: Any, conversion: Conversion, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = the_model()
    damage(folder)
    assert the_model() == folder
    assert "the converted model is made anew: " in caplog.text
    assert (folder / WEIGHTS).read_bytes() == b"weights"
    assert list(models.iterdir()) == [folder]
    assert the_model() == folder
    assert conversion.count == 2


def test_an_interrupted_conversion_leaves_nothing(
    models: Path, conversion: Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(source: Path, target: Path, label: str | None, weights: str) -> None:
        conversion(source, target, label, weights)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_run_conversion", interrupted)
    with pytest.raises(KeyboardInterrupt):
        the_model()
    assert list(models.iterdir()) == []


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_are_not(
    models: Path, conversion: Conversion
) -> None:
    dead, living, young = (models / f"{NAME}.partial-{word}" for word in ("a", "b", "c"))
    for folder in (dead, living, young):
        folder.mkdir(parents=True)
    for folder in (dead, living):
        os.utime(folder, (0, 0))
    lock = os.open(living, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    the_model()
    os.close(lock)
    assert [folder.exists() for folder in (dead, living, young)] == [False, True, True]


@pytest.mark.parametrize("damaged", [False, True])
def test_of_two_conversions_at_once_both_callers_get_a_whole_model(
    damaged: bool, models: Path, conversion: Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    if damaged:
        (the_model() / WEIGHTS).unlink()

    def overtaken(source: Path, target: Path, label: str | None, weights: str) -> None:
        monkeypatch.setattr(module, "_run_conversion", conversion)
        the_model()
        (target / WEIGHTS).write_bytes(b"late")

    monkeypatch.setattr(module, "_run_conversion", overtaken)
    folder = the_model()
    assert (folder / WEIGHTS).read_bytes() == b"weights"
    assert list(models.iterdir()) == [folder]


@pytest.mark.parametrize("spoiled", ["models", f"models/{NAME}", f"models/{NAME}/{WEIGHTS}"])
def test_what_others_can_write_is_not_believed(
    spoiled: str, tmp_path: Path, conversion: Conversion, caplog: pytest.LogCaptureFixture
) -> None:
    the_model()
    path = tmp_path / "cache" / spoiled
    path.chmod(path.stat().st_mode | 0o020)
    folder = the_model()
    assert folder.parent == tmp_path / "tmp"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / WEIGHTS).read_bytes() == b"weights"
    assert (
        f"the converted model is not kept, other users can write to {path} (chmod go-w makes it "
        "usable); set RADIXSERVE_CACHE_DIR to a folder of your own" in caplog.text
    )


def test_a_folder_that_cannot_be_written_is_replaced_by_a_temporary_one(
    tmp_path: Path,
    conversion: Conversion,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("RADIXSERVE_CACHE_DIR", "/dev/null/cache")
    folder = the_model()
    assert converted(lambda: Path("tiny.gguf"), NAME, progress=False) == folder
    assert (folder.parent, conversion.count) == (tmp_path / "tmp", 1)
    assert "the converted model is not kept, /dev/null/cache" in caplog.text


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """No folder has room for weights. Gives the sentence that says so."""

    def convert(source: Path, target: Path, label: str | None, weights: str) -> None:
        (target / "config.json").write_bytes(b"{}")
        if weights != LINKED:
            raise OSError(f"{target.parent} has 3 MiB free, 513 MiB are needed")

    monkeypatch.setattr(module, "_run_conversion", convert)
    monkeypatch.setattr(module, "MEMORY", tmp_path / "memory")
    return (
        f"the converted model is not kept, {tmp_path}/cache/models has 3 MiB free, 513 MiB are "
        "needed; set RADIXSERVE_CACHE_DIR to a folder of your own; a temporary folder fails, too: "
        f"{tmp_path}/tmp has 3 MiB free, 513 MiB are needed"
    )


def test_where_no_weights_can_be_written_all_else_lies_in_memory(
    tmp_path: Path, full: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "memory").mkdir()
    folder = the_model()
    assert folder.parent == tmp_path / "memory"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert f"{full}; so every start of the engine converts the weights in memory" in caplog.text
    assert list((tmp_path / "cache" / "models").iterdir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_where_nothing_can_be_written_one_sentence_names_the_folders(
    tmp_path: Path, full: str
) -> None:
    with pytest.raises(ModelRefused) as refused:
        the_model()
    sentence = str(refused.value)
    assert sentence.startswith(f"{full}; so does memory: {tmp_path}/memory/{TEMPORARY}")
    assert sentence.endswith(": No such file or directory")
    assert list((tmp_path / "tmp").iterdir()) == []


PROGRAM = """
import sys, time, tempfile
from pathlib import Path
from radixserve.checkpoints import converted as module
def convert(source, target, label, weights):
    (target / "model.safetensors").write_bytes(b"weights")
module._run_conversion = convert
print(module.converted(lambda: Path("tiny.gguf"), "tiny-v1"), flush=True)
sys.stdin.read()
"""


def test_a_temporary_model_goes_with_its_process_and_after_a_kill_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RADIXSERVE_CACHE_DIR", "/dev/null/cache")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    for end in (signal.SIGKILL, None):
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        child = subprocess.Popen([sys.executable, "-c", PROGRAM], text=True, **pipes)
        assert child.stdout is not None
        folder = Path(child.stdout.readline().strip())
        assert (folder / WEIGHTS).read_bytes() == b"weights"
        if end is not None:
            child.send_signal(end)
        child.communicate()
        assert folder.exists() == (end is not None)
        if folder.exists():
            os.utime(folder, (0, 0))
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_a_file_that_is_no_model_is_refused_in_one_sentence(tmp_path: Path, models: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    with pytest.raises(ModelRefused) as refused:
        converted(lambda: broken, "broken-v1", progress=False)
    assert (
        str(refused.value)
        == f"Converting {broken} failed (exit status 1): {broken} is no GGUF file."
    )
    assert list(models.iterdir()) == []


def test_a_signal_ends_the_conversion_and_its_process(tmp_path: Path, models: Path) -> None:
    os.mkfifo(tmp_path / "stuck.gguf")  # reading it never ends
    code = (
        "from pathlib import Path; from radixserve.checkpoints.converted import converted\n"
        f"converted(lambda: Path({str(tmp_path / 'stuck.gguf')!r}), 'stuck-v1')"
    )
    with (
        usual_signals(),
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as parent,
    ):
        deadline = time.monotonic() + 60
        while not list(models.glob("*.partial-*")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        parent.send_signal(signal.SIGINT)
        parent.wait(timeout=10)
    assert list(models.iterdir()) == []

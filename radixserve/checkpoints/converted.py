"""Keeps models that were converted from GGUF files, and converts those that are missing.

Dequantising takes many seconds, so it is done once, by a child process
(`python -m radixserve.checkpoints.convert`). A kept model carries the digests of its files and is
verified at every start: if it is damaged it is converted anew, and if other users could have
written it, it is not used. If the cache folder cannot be used, a private temporary folder replaces
it until this process ends. If that has no room either, a folder of a few MB in memory holds all but
the weights, which the engine then reads from the GGUF file. Imports no torch: the front process
uses this module.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from radixserve.cache_folder import (
    ADVICE,
    CACHE_VARIABLE,
    cache_dir,
    check_owner,
    opened,
    reason,
)
from radixserve.checkpoints.temporary import MEMORY
from radixserve.errors import ModelRefused

log = logging.getLogger(__name__)

FORMAT = 2  # part of a folder's name: raised when `convert` writes something else
LINKED, WHOLE, FITTING = "linked", "whole", "fitting"
"""Arguments of `convert`: weights stay in their GGUF file, are converted, or stay if they can be
served as codes.
"""
NO_ROOM = 3  # exit status of `convert` where it cannot write; its last line says why
_SUMS = "SHA256SUMS"
_PARTIAL = ".partial-"
_TEMPORARY = "radixserve-model-"
_SWEEP_AFTER_SECONDS = 60.0  # a younger folder may not be locked yet


_ready: dict[tuple[str | None, str], Path] = {}  # what this process has verified or converted


def converted(
    find: Callable[[], Path], name: str, progress: bool = True, weights: str = FITTING
) -> Path:
    """The folder with the model of the GGUF file that `find` finds, its weights as `weights` says,
    or linked where there is no room for them. If the model is kept as `name` this takes half a
    second for half a GB of converted weights; if not, some seconds, with converted weights 10-30 s.

    Safe against concurrent callers and against being killed at any moment: a conversion writes into
    a folder of its own and becomes visible by one rename.

    Raises:
        ModelRefused: the conversion failed (with the child's last line), or nothing can be
            written; one sentence names the folders.
    """
    key = (os.environ.get(CACHE_VARIABLE), name)
    if key not in _ready or not _ready[key].is_dir():
        _ready[key] = _found_or_made(find, name, progress, weights)
    return _ready[key]


def _found_or_made(find: Callable[[], Path], name: str, progress: bool, weights: str) -> Path:
    label = name.removesuffix(f"-v{FORMAT}")
    try:
        return _in_cache(find, name, label if progress else None, weights)
    except OSError as error:
        told = f"the converted model is not kept, {reason(error)}; {ADVICE}"
    source, shown = find(), label if progress else None
    try:
        folder = _for_this_process(source, Path(tempfile.gettempdir()), shown, weights)
    except OSError as error:
        told = f"{told}; a temporary folder fails, too: {reason(error)}"
    else:
        log.warning("%s", told)
        return folder
    try:
        folder = _for_this_process(source, MEMORY, shown, LINKED)
    except OSError as error:
        raise ModelRefused(f"{told}; so does memory: {reason(error)}") from error
    log.warning("%s; so every start of the engine converts the weights in memory", told)
    return folder


def _in_cache(find: Callable[[], Path], name: str, label: str | None, weights: str) -> Path:
    models = cache_dir() / "models"
    folder = models / name
    if folder.is_dir():
        fault = _fault(models, name)
        if fault is None:
            return folder
        log.warning("the converted model is made anew: %s", fault)
    source = find()
    models.mkdir(mode=0o755, parents=True, exist_ok=True)
    with opened(models):
        _sweep(models, f"*{_PARTIAL}*")
        with _partial(models, f"{name}{_PARTIAL}") as partial:
            _run_conversion(source, partial, label, weights)
            _write_sums(partial)
            _publish(partial, folder)
    return folder


def _for_this_process(source: Path, place: Path, label: str | None, weights: str) -> Path:
    """A conversion in a folder in `place`, removed when this process ends."""
    _sweep(place, f"{_TEMPORARY}*")
    room = contextlib.ExitStack()
    atexit.register(room.close)
    try:
        folder = room.enter_context(_partial(place, _TEMPORARY))
        _run_conversion(source, folder, label, weights)
    except BaseException:
        room.close()
        raise
    return folder


def _fault(models: Path, name: str) -> str | None:
    """What is wrong with a kept model, or None. Reads all of its files.

    Raises:
        OSError: other users could have written it, so it must not be used.
    """
    folder = models / name
    with opened(models), opened(folder):
        try:
            lines = (folder / _SUMS).read_text().splitlines()
        except (FileNotFoundError, ValueError):
            return f"{folder / _SUMS} is missing or damaged"
        sums = {file: digest for digest, _, file in (line.partition("  ") for line in lines)}
        if set(sums) != {file.name for file in _visible(folder)} - {_SUMS}:
            return f"{folder} is not whole"
        gone = [file for file in folder.iterdir() if file.is_symlink() and not file.exists()]
        if gone:
            return f"the file that {gone[0]} links to is gone"
        damaged = (folder / file for file in sums if _sha256(folder / file) != sums[file])
        return next((f"{file} is damaged" for file in damaged), None)


def _visible(folder: Path) -> list[Path]:
    """The files of a kept model, without a link to the file that it was made of."""
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted(file for file in files if not file.is_symlink())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        check_owner(os.fstat(file.fileno()), str(path))
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_sums(folder: Path) -> None:
    """Write the digests as `sha256sum` would, so that `sha256sum -c` checks them."""
    files = _visible(folder)
    for file in files:
        file.chmod(0o644)
    (folder / _SUMS).write_text("".join(f"{_sha256(file)}  {file.name}\n" for file in files))


@contextmanager
def _partial(place: Path, prefix: str) -> Iterator[Path]:
    """An empty folder, locked so that no other process sweeps it, and removed at the end of the
    block.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _sweep(place: Path, pattern: str) -> None:
    """Remove the folders that killed processes left. Those of living processes are locked."""
    for left in sorted(place.glob(pattern)):
        with contextlib.suppress(OSError):
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(lock).st_mtime > _SWEEP_AFTER_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _run_conversion(source: Path, target: Path, label: str | None, weights: str) -> None:
    """Raises OSError if `target` has no room, ModelRefused if `source` cannot be read."""
    command = [sys.executable, "-m", "radixserve.checkpoints.convert", str(source), str(target)]
    command.append(weights)
    told = log.info if label is not None else log.debug
    told(
        "converting the model %s%s",
        label,
        "" if weights == LINKED else ", once for later starts, too",
    )
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    words: list[str] = []
    try:
        assert child.stderr is not None, "asked for a pipe"
        with child.stderr:
            for line in child.stderr:
                words = [*words[-9:], line.rstrip()]
                if line.startswith("convert: "):
                    told("%s", line.removeprefix("convert: ").rstrip())
        status = child.wait()
    finally:
        child.kill()  # Ctrl-C, SIGTERM
        child.wait()
    if status == NO_ROOM:
        raise OSError(words[-1])
    if status != 0:
        words = words or ["killed, perhaps because memory lacks"]
        raise ModelRefused(f"Converting {source} failed (exit status {status}): {words[-1]}")


def _publish(partial: Path, folder: Path) -> None:
    """Make a finished conversion visible: flush its files to the disk, rename the folder, flush the
    folder entry. A damaged folder of the same name is moved aside and removed.
    """
    for file in sorted(partial.iterdir()):
        _fsync(file)
    partial.chmod(0o755)
    _fsync(partial)
    try:
        partial.rename(folder)
    except OSError:
        if _fault(folder.parent, folder.name) is not None:
            with _partial(folder.parent, f"{folder.name}{_PARTIAL}") as aside:
                folder.rename(aside)
                partial.rename(folder)
                return
        # otherwise another process was first: its copy is as good as ours
    _fsync(folder.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Finds the folder of the model that the settings name, and the names that clients may use for it.

A setting names a folder, a folder of the hub's cache, a GGUF file or a model on the hub; in each
case the rest of the server gets a folder. Imports no torch: the front process runs this before the
engine starts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radixserve.checkpoints.converted import FORMAT, converted
from radixserve.checkpoints.embedded import EMBEDDED_NAME, embedded_model
from radixserve.checkpoints.folder_files import check_files
from radixserve.config import Settings
from radixserve.errors import ModelRefused

log = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FOLDER = "models--"
_CONTACT_SECONDS = 7.0  # for the hub's first answer; looking into its cache takes one more


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A folder with config.json, weights and tokenizer, and its names. Clients see the first
    name.
    """

    folder: Path
    names: tuple[str, ...]


def find_model(settings: Settings) -> ModelSource:
    """The model to serve, which the settings of one model name (`each_model`). Converts or
    downloads it if that was not done before.

    Raises:
        ModelRefused: there is no such model, or it cannot be converted or downloaded; one sentence
            gives the reason.
    """
    if not settings.model:
        if settings.revision is not None:
            raise ModelRefused(
                f"revision {settings.revision!r} needs a model from the hub: give it"
            )
        found = ModelSource(embedded_model(), (EMBEDDED_NAME,))
    else:
        found = _named(settings.model[0], settings.revision)
    return ModelSource(found.folder, _served_names(settings.served_model_name, found.names))


def _served_names(given: tuple[str, ...], found: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the model, those with a `*` last: answers carry the first, which has none."""
    names = dict.fromkeys(given or found)
    plain = [name for name in names if "*" not in name] or list(found)
    return (*plain, *(name for name in names if "*" in name))


def _named(model: str, revision: str | None) -> ModelSource:
    path = Path(model)
    if path.is_dir():
        return _in_folder(path, model, revision)
    if path.suffix.lower() == ".gguf" and path.is_file():
        return ModelSource(_from_gguf(path, revision), (path.stem,))
    if path.is_file():
        raise ModelRefused(_not_a_folder(path))
    if not _HUB_NAME.fullmatch(model):
        raise ModelRefused(f"there is no folder {model!r}")
    return ModelSource(_from_hub(model, revision), _names(model))


def _names(name: str) -> tuple[str, ...]:
    """ORG/NAME, and NAME alone."""
    return tuple(dict.fromkeys((name, name.rpartition("/")[2])))


def _not_a_folder(path: Path) -> str:
    return f"{path} is a file: give the folder it lies in, {path.absolute().parent}"


def _from_gguf(path: Path, revision: str | None) -> Path:
    """The folder of the converted file. A file that has changed is converted anew."""
    if revision is not None:
        raise ModelRefused(f"{path} is a file, which has no revision {revision!r}")
    status = path.stat()
    facts = (os.path.abspath(path), status.st_size, status.st_mtime_ns)
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return converted(lambda: path, f"{path.stem}-{key}-v{FORMAT}")


def _in_folder(path: Path, typed: str, revision: str | None) -> ModelSource:
    absolute = Path(os.path.abspath(path))
    if absolute.name.startswith(_HUB_FOLDER) and (path / "snapshots").is_dir():
        return ModelSource(_snapshot(path, revision), _names(_hub_name(absolute)))
    if revision is not None:
        raise ModelRefused(f"{path} is a folder, which has no revision {revision!r}")
    check_files(path)
    if not (path / "config.json").is_file():
        raise ModelRefused(_no_model(path))
    if absolute.parent.name == "snapshots" and absolute.parts[-3].startswith(_HUB_FOLDER):
        return ModelSource(path, _names(_hub_name(absolute.parent.parent)))
    name = typed.rstrip("/")
    return ModelSource(path, _names(name) if _HUB_NAME.fullmatch(name) else (absolute.name,))


def _no_model(path: Path) -> str:
    files = sorted(path.glob("*.gguf"))
    hint = f"; it has {files[0].name}: give that file" if files else ""
    return f"the folder {path} holds no model: config.json is missing{hint}"


def _hub_name(folder: Path) -> str:
    """The name org/name, for which the hub's cache writes `models--org--name`."""
    return folder.name.removeprefix(_HUB_FOLDER).replace("--", "/", 1)


def _snapshot(folder: Path, revision: str | None) -> Path:
    """The folder with the files of one revision, in a model's folder of the hub's cache."""
    wanted = revision or "main"
    try:
        commit = (folder / "refs" / wanted).read_text().strip()
    except OSError:
        commit = wanted
    kept = sorted((folder / "snapshots").iterdir())
    if revision is None and len(kept) == 1:
        return kept[0]
    for snapshot in kept:
        if snapshot.name == commit:
            return snapshot
    raise ModelRefused(f"{folder} of the hub's cache has no revision {wanted!r}")


def _from_hub(name: str, revision: str | None) -> Path:
    log.info("looking for %s on the hub", name)
    answer = _ask_child(name, revision, _CONTACT_SECONDS)
    if "failed" in answer:
        kept = _ask_child(name, revision, None, HF_HUB_OFFLINE="1")
        if "folder" not in kept:
            raise ModelRefused(
                f"{kept.get('refused')}; the hub cannot be reached ({answer['failed']})"
            )
        log.warning("the hub cannot be reached (%s): using the cached files", answer["failed"])
        answer = kept
    if "refused" in answer:
        raise ModelRefused(answer["refused"])
    return Path(answer["folder"])


def _ask_child(
    name: str, revision: str | None, patience: float | None, **environment: str
) -> dict[str, Any]:
    """The last message of a `fetch` process. `patience` is how many seconds to wait for its first
    one, None for no limit.
    """
    command = [
        sys.executable,
        "-m",
        "radixserve.checkpoints.fetch",
        name,
        *([revision] if revision else []),
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | environment)
    try:
        assert child.stdout is not None, "asked for a pipe"
        if not select.select([child.stdout], [], [], patience)[0]:
            return {"failed": f"no answer within {patience:g} s"}
        answer: dict[str, Any] = {"failed": "the download was broken off"}
        for line in child.stdout:
            answer = json.loads(line)
            if "reached" in answer:
                answer = {"failed": "the download was broken off"}
        return answer
    finally:
        child.kill()  # also after an exception, such as Ctrl-C
        child.wait()
        if child.stdout is not None:
            child.stdout.close()

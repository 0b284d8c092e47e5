"""Downloads a model from the hub into the hub's own cache, or finds it there.

Run as a child process by `source`: `python -m radixserve.checkpoints.fetch NAME [REVISION]`, so
that it can be killed at any moment when the network hangs, even in the name service. It prints one
JSON object per line to stdout: {"reached": true} once the hub has answered, then {"folder": PATH}
or {"refused": SENTENCE}; progress goes to stderr. With HF_HUB_OFFLINE=1 it looks only into the
cache.
"""

from __future__ import annotations

import fnmatch
import json
import os
import sys
from pathlib import Path

import huggingface_hub as hub
from huggingface_hub import constants, errors

_CONTACT_SECONDS = 5.0
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_INDEX = "model.safetensors.index.json"


class Refused(Exception):
    """The model cannot be downloaded or found; the sentence is for the operator."""


def fetch(name: str, revision: str | None) -> Path:
    """The folder with the files of the model.

    Raises:
        Refused: it is not in the cache, and the hub is out of reach or refuses it.
    """
    kept = _kept(name, revision)
    if constants.HF_HUB_OFFLINE:
        if kept is None:
            version = f" in revision {revision!r}" if revision else ""
            raise Refused(
                f"there is no folder {name!r} here, and no whole copy of it{version} in the hub's "
                f"cache {constants.HF_HUB_CACHE}"
            )
        return kept
    try:
        files = _files(name, revision)
    except errors.GatedRepoError:
        page = f"{constants.ENDPOINT}/{name}"
        raise Refused(
            f"{name} is gated: accept its terms at {page}, then set HF_TOKEN or run `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise Refused(f"{name} has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise Refused(
            f"there is no folder {name!r} here, and the hub has no model of that name, or keeps "
            "it private (HF_TOKEN)"
        ) from None
    _say(reached=True)
    return _download(name, revision, files)


def _files(name: str, revision: str | None) -> list[str]:
    """The names of the files to download: the small files, and weights in safetensors."""
    info = hub.HfApi().model_info(name, revision=revision, timeout=_CONTACT_SECONDS)
    there = [file.rfilename for file in info.siblings or () if "/" not in file.rfilename]
    weights = fnmatch.filter(there, "model*.safetensors") or fnmatch.filter(there, "*.safetensors")
    if not weights:
        raise Refused(f"{name} has no weights in safetensors, the only format that is read")
    return weights + [file for file in there if any(fnmatch.fnmatch(file, p) for p in _SMALL_FILES)]


def _download(name: str, revision: str | None, files: list[str]) -> Path:
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=files))
    except OSError as error:
        place = f"; the hub's cache is {constants.HF_HUB_CACHE} (HF_HOME names another)"
        raise Refused(f"cannot download {name}: {_first_line(error)}{place}") from error


def _kept(name: str, revision: str | None) -> Path | None:
    """The folder of the model in the cache, or None if it is not complete."""
    config = hub.try_to_load_from_cache(name, "config.json", revision=revision)
    folder = Path(config).parent if isinstance(config, str) else None
    return folder if folder is not None and _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    try:
        shards = set(json.loads((folder / _INDEX).read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError):
        return any(folder.glob("*.safetensors"))
    return all((folder / shard).is_file() for shard in shards)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _say(**message: object) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def main() -> int:
    """The entry point of the child process. Returns its exit code."""
    sys.stdout = sys.stderr  # what the libraries below print must not mix with our JSON
    revision = sys.argv[2] if len(sys.argv) > 2 else None
    try:
        _say(folder=str(fetch(sys.argv[1], revision)))
    except Refused as refusal:
        _say(refused=str(refusal))
    except Exception as error:  # with a broken network the libraries below raise anything
        _say(failed=f"{type(error).__name__}: {_first_line(error)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

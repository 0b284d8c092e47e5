"""The weights in a model's folder, whatever kind of files they lie in, for starts that read them
straight from there.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from radixserve.checkpoints.folder_files import SMALL_FILES, check_files
from radixserve.checkpoints.gguf_file import GGUF_FILE, GgufFile
from radixserve.checkpoints.weight_files import WeightFiles, headers
from radixserve.store.format.run_file import digest_fields


def in_gguf(folder: Path) -> bool:
    """Whether the weights of a folder are in a GGUF file that `convert` linked: where there are
    safetensors, they are in these.
    """
    return (folder / GGUF_FILE).is_file() and not any(folder.glob("*.safetensors"))


def open_weights(folder: Path) -> WeightFiles | GgufFile:
    """The tensors in a folder, by name; to be used in a `with` block.

    Raises:
        ModelRefused: a header is damaged, or a tensor has a type that is not served.
        OSError: a file cannot be read.
    """
    return GgufFile(folder) if in_gguf(folder) else WeightFiles(folder)


def identity(folder: Path) -> str:
    """A digest of everything in a model's folder that decides how it is loaded, except the values
    of its weights: the names of all files, the content of small ones, and the headers and sizes of
    the files with weights. Takes some milliseconds.

    Raises:
        ModelRefused: the folder is damaged.
        OSError: it cannot be read.
    """
    check_files(folder)
    fields: list[str | int | bytes] = [str(path) for path in sorted(os.listdir(folder))]
    for name in SMALL_FILES:
        if (folder / name).is_file():
            fields += [name, hashlib.sha256((folder / name).read_bytes()).hexdigest()]
    if in_gguf(folder):
        return digest_fields("model folder", *fields, *GgufFile(folder).identity())
    return digest_fields("model folder", *fields, *headers(folder))

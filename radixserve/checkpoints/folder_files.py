"""Looks at the small files of a model's folder before anything reads them.

A link that leads nowhere or in a circle, a named pipe, a device, a folder in place of a file, an
endless or a huge file: libraries ignore some of these, wait for others, and read the rest until
memory ends. Imports no torch: the front process looks before it starts other processes.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from radixserve.errors import ModelRefused

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "adapter_config.json",
    "modules.json",
)
"""The files that are read whole, by us or by the libraries below."""

MOST_BYTES = 256 << 20
"""Of a small file. The largest tokenizers take 35 MB."""


def check_files(folder: Path) -> None:
    """Refuse a folder with a small file that cannot be read whole. Files that are not there are
    fine here. Reads nothing.

    Raises:
        ModelRefused: one sentence names the file and says what it is.
    """
    for name in SMALL_FILES:
        file = folder / name
        if present(file) and file.stat().st_size > MOST_BYTES:
            raise ModelRefused(
                f"{file} has {file.stat().st_size:,} bytes; at most {MOST_BYTES:,} are read."
            )


def present(path: Path) -> bool:
    """Whether there is a file that can be read; False if there is nothing of that name.

    Raises:
        ModelRefused: there is something else, or it cannot be read; one sentence names it.
    """
    try:
        status = path.stat()
    except OSError as error:
        fault = _unseen(path, error)
    else:
        fault = _fault(path, status)
    if fault:
        raise ModelRefused(f"{path} {fault}.")
    return os.path.lexists(path)


def _fault(path: Path, status: os.stat_result) -> str | None:
    """Why a file cannot be read, as the rest of a sentence."""
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    if status.st_size == 0:  # files of /proc look like this, too, and some never end
        return "is empty"
    return None if os.access(path, os.R_OK) else "cannot be read: permission denied"


def _unseen(path: Path, error: OSError) -> str | None:
    if error.errno == errno.ENOENT:
        return (
            f"is a link to {os.readlink(path)!r}, which is missing" if path.is_symlink() else None
        )
    return f"cannot be read: {(error.strerror or str(error)).lower()}"

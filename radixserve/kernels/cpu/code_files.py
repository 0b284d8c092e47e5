"""Keeps the machine code of compiled kernels in the cache folder, one file for each kernel.

A file is read only if no other user can have written it (`cache_folder`), and its digest detects
damage: code that is cut, empty or changed is compiled anew and overwritten. If nothing can be kept,
the server works without, and logs it once. Knows nothing of compilers.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from radixserve.cache_folder import (
    ADVICE,
    cache_dir,
    check_owner,
    make_private,
    opened,
    reason,
)

log = logging.getLogger(__name__)

_MAGIC = b"radixserve kernel 1\n"
_DIGEST_BYTES = 32
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_told: set[str] = set()


@dataclass(frozen=True, slots=True)
class Code:
    """An object file, and the name of the function in it."""

    symbol: str
    object: bytes


def read(name: str) -> Code | None:
    """The code kept under `name`; None if there is none that may be used."""
    try:
        with opened(_folder()) as folder:
            data = _bytes(folder, name)
    except OSError:
        return None  # if it is more than a missing file, `keep` meets the same fault and logs it
    code = _decode(name, data)
    if code is None:
        log.warning("the kept kernel %s is damaged; it is compiled anew", name)
    return code


def keep(name: str, code: Code) -> None:
    """Write `code` in one step, so that readers see all of it or nothing. If it cannot, it logs
    why, once.
    """
    try:
        make_private(_folder())
        with opened(_folder()) as folder:
            _replace(folder, name, _encode(name, code))
    except OSError as error:
        _tell_once(f"compiled kernels are not kept, {reason(error)}; {ADVICE}")


def _folder() -> Path:
    return cache_dir() / "kernels"


def _bytes(folder: int, name: str) -> bytes:
    with open(os.open(name, _READ, dir_fd=folder), "rb") as file:
        status = os.fstat(file.fileno())
        check_owner(status, f"{_folder() / name}")
        return file.read() if stat.S_ISREG(status.st_mode) else b""


def _replace(folder: int, name: str, data: bytes) -> None:
    partial = f"{name}.{secrets.token_hex(8)}.tmp"
    try:
        with open(os.open(partial, _WRITE, 0o600, dir_fd=folder), "wb") as file:
            file.write(data)
        os.replace(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        _remove(folder, partial)
        raise


def _remove(folder: int, name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=folder)


def _encode(name: str, code: Code) -> bytes:
    content = code.symbol.encode() + b"\n" + code.object
    return _MAGIC + _digest(name, content) + content


def _decode(name: str, data: bytes) -> Code | None:
    """The code in `data`; None for anything that `_encode` did not write under this very name."""
    start = len(_MAGIC) + _DIGEST_BYTES
    content = data[start:]
    if data[:start] != _MAGIC + _digest(name, content):
        return None
    symbol, _, code = content.partition(b"\n")
    return Code(symbol.decode(), code)


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


def _tell_once(message: str) -> None:
    if message not in _told:
        _told.add(message)
        log.warning("%s", message)

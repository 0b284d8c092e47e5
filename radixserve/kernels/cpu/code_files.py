"""Keeps the machine code of compiled kernels in the cache folder, one file for each kernel.

Code that is damaged is compiled anew and overwritten (`kept_files`). If nothing can be kept, the
server works without, and logs it once. Knows nothing of compilers.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from radixserve.cache_folder import ADVICE, reason
from radixserve.kept_files import Damaged, KeptFiles

log = logging.getLogger(__name__)

_KERNELS = KeptFiles("kernels", b"radixserve kernel 1\n")
_told: set[str] = set()


@dataclass(frozen=True, slots=True)
class Code:
    """An object file, and the name of the function in it."""

    symbol: str
    object: bytes


def read(name: str) -> Code | None:
    """The code kept under `name`; None if there is none that may be used."""
    try:
        content = _KERNELS.read(name)
    except Damaged:
        log.warning("the kept kernel %s is damaged; it is compiled anew", name)
        return None
    if content is None:
        return None
    symbol, _, code = content.partition(b"\n")
    return Code(symbol.decode(), code)


def keep(name: str, code: Code) -> None:
    """Write `code`. If it cannot, it logs why, once."""
    try:
        _KERNELS.keep(name, code.symbol.encode() + b"\n" + code.object)
    except OSError as error:
        _tell_once(f"compiled kernels are not kept, {reason(error)}; {ADVICE}")


def _tell_once(message: str) -> None:
    if message not in _told:
        _told.add(message)
        log.warning("%s", message)

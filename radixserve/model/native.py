"""Compiles kernels to C functions, once per machine and version, and keeps the code on disk.

Owns the compiled code's place. Knows nothing of what the kernels compute.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

from radixserve.model import compiled
from radixserve.model.embedded import cache_dir

log = logging.getLogger(__name__)

_SOURCES = (
    "coded_products",
    "codes",
    "compiled",
    "few_rows",
    "lanes",
    "layer_block",
    "products",
    "program",
    "row_kernels",
    "step_block",
    "tile_kernel",
    "tile_loads",
    "tile_scratch",
    "tiles",
)


@cache
def address(kernel: Callable[[Any], None]) -> int:
    """Where `void kernel(void *block)` lies in memory; compiling takes seconds, once: later it is
    read from disk.
    """
    folder = _compiled_code_dir()
    if not folder.exists():
        log.info("compiling kernels (once)")
    numba.config.CACHE_DIR = str(folder)
    pointer: int = _function(kernel).address
    return pointer


@cache
def _function(kernel: Callable[[Any], None]) -> Any:
    """Kept: the code lives as long as this object."""
    return compiled.kernel()(kernel)


@cache
def _compiled_code_dir() -> Path:
    """Numba looks at one source file to tell whether compiled code is stale; a kernel has several."""
    return cache_dir() / "kernels" / sources_digest()


def sources_digest() -> str:
    """Tells one version of the kernels from another."""
    sources = (Path(__file__).with_name(f"{name}.py") for name in _SOURCES)
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]

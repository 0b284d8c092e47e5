"""Returns memory that is freed while a model is loaded to the system at once.

The C library keeps freed memory for later, which is right while steps are computed and wrong while
weights are replaced one by one: the memory of the old weights would count against the process
together with that of the new ones. Without glibc this does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
_OWN_MAPPING_BYTES = 256 << 10  # blocks from this size on are mapped one by one
_USUAL_BYTES = 32 << 20  # glibc's own limit for what it adjusts itself


@contextlib.contextmanager
def freed_at_once() -> Iterator[None]:
    """Within the block each large tensor is a mapping of its own, so freeing it returns its
    memory.
    """
    c = ctypes.CDLL(None)
    if not hasattr(c, "mallopt") or not hasattr(c, "malloc_trim"):
        yield
        return
    c.mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)
    try:
        yield
    finally:
        c.mallopt(_M_MMAP_THRESHOLD, _USUAL_BYTES)
        c.mallopt(_M_TRIM_THRESHOLD, 2 * _USUAL_BYTES)
        c.malloc_trim(0)

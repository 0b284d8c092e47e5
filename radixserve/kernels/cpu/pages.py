"""Memory for packed weights in large pages.

A decode step reads all weights once. With pages of 4 KB the processor looks up an address
translation every 64 cache lines, which under a hypervisor takes about as long as reading them; with
pages of 2 MB a weight was read 1.5 times as fast here. Linux gives large pages to memory that asks
for them, if it has any. Knows nothing of weights.
"""

from __future__ import annotations

import contextlib
import mmap
import threading

import torch

_PAGE = 2 << 20  # bytes of a large page
_SHARED = 16 << 20  # bytes of a piece that small tensors share
_LINE = 64  # bytes; each tensor begins at a cache line
_lock = threading.Lock()
_piece = torch.empty(0, dtype=torch.uint8)  # what is left of the current shared piece


def empty(count: int) -> torch.Tensor:
    """A flat tensor of `count` float32 that holds anything. Small tensors share a piece of memory,
    which is freed when the last of them is.
    """
    return _room(count * torch.float32.itemsize).view(torch.float32)


def _room(size: int) -> torch.Tensor:
    global _piece
    if size > _SHARED // 2:
        return _mapped(size)[:size]
    with _lock:
        whole = -(-size // _LINE) * _LINE
        if len(_piece) < whole:
            _piece = _mapped(_SHARED)
        found, _piece = _piece[:size], _piece[whole:]
        return found


def _mapped(size: int) -> torch.Tensor:
    """At least `size` bytes of fresh memory, in whole large pages."""
    # Private, because only few systems give large pages to memory that processes may share.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, -(-size // _PAGE) * _PAGE, flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)

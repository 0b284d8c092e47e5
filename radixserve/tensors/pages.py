"""Large zeroed tensors in host memory, which the system gives out page by page.

Writing zeros into a pool of some GiB takes seconds of a start. The pages of a new anonymous mapping
are zeros already, and the system makes each of them when it is first touched. `fill` has them made
in the background, so that steps do not wait for that either (0.7 us a page of 4 KiB), and so that
memory which is missing is missed soon and not when the cache is full. Pages are large (2 MiB) where
the system has such, because attention reads rows that lie far apart, and each small page costs a
look-up of its address.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys
import threading
from collections.abc import Sequence

import torch

from radixserve.background import yield_to_others

_POPULATE_WRITE = 23  # from linux/mman.h; since Linux 5.14
_PART_BYTES = 2 << 20  # filled at a time; about a millisecond


def zeroed(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of zeros on the CPU, of at least one element, whose pages are not made yet. Takes
    no time.

    Raises:
        OSError: the system cannot reserve so much memory.
    """
    count = math.prod(shape)
    if sys.platform != "linux":
        return torch.zeros(*shape, dtype=dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=flags)
    with contextlib.suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(*shape)


def fill(*tensors: torch.Tensor) -> threading.Thread:
    """Make the pages of tensors of `zeroed`, [layers, ...] each, in a thread that yields to all
    others, and return the thread. The beginning of every layer comes first, because the first slots
    are used first. The tensors' content does not change, also where it is written meanwhile. Where
    the system cannot do that, pages are made when they are first touched.
    """
    thread = threading.Thread(target=_fill, args=tensors, name="pages", daemon=True)
    thread.start()
    return thread


def _fill(*tensors: torch.Tensor) -> None:
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    yield_to_others()
    layers = [(layer.data_ptr(), layer.nbytes) for tensor in tensors for layer in tensor]
    for start in range(0, max(size for _, size in layers), _PART_BYTES):
        for address, size in layers:
            first = (address + start) // mmap.PAGESIZE * mmap.PAGESIZE  # madvise wants whole pages
            length = min(address + start + _PART_BYTES, address + size) - first
            if length > 0 and madvise(first, length, _POPULATE_WRITE):
                return

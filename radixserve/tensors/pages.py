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
from collections.abc import Callable, Sequence

import torch

from radixserve.background import yield_to_others

_POPULATE_WRITE = 23  # from linux/mman.h; since Linux 5.14
_DONTNEED = 4
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


def fill(*tensors: torch.Tensor, until: threading.Event | None = None) -> threading.Thread:
    """Make the pages of tensors of `zeroed`, [layers, ...] each, in a thread that yields to all
    others, and return the thread; it ends early when `until` is set. The beginning of every layer
    comes first, because the first slots are used first. The tensors' content does not change, also
    where it is written meanwhile. Where the system cannot do that, pages are made when they are
    first touched.
    """
    stop = until or threading.Event()
    thread = threading.Thread(target=_fill, args=(stop, *tensors), name="pages", daemon=True)
    thread.start()
    return thread


def _fill(stop: threading.Event, *tensors: torch.Tensor) -> None:
    if sys.platform != "linux":
        return
    madvise = _madvise()
    yield_to_others()
    layers = [(layer.data_ptr(), layer.nbytes) for tensor in tensors for layer in tensor]
    for start in range(0, max(size for _, size in layers), _PART_BYTES):
        for address, size in layers:
            first = (address + start) // mmap.PAGESIZE * mmap.PAGESIZE  # madvise wants whole pages
            length = min(address + start + _PART_BYTES, address + size) - first
            if stop.is_set() or (length > 0 and madvise(first, length, _POPULATE_WRITE)):
                return


def release(*tensors: torch.Tensor) -> None:
    """Give the memory of tensors of `zeroed`, or of parts of them, [layers, ...] each, back to the
    system. They are zeros from now on, and their pages are made again when they are touched. Of
    the pages at both ends of a layer, parts of which belong to others, nothing changes. About 0.1
    ms a megabyte.
    """
    if sys.platform != "linux":
        return
    madvise = _madvise()
    for layer in (layer for tensor in tensors for layer in tensor):
        first = -(-layer.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (layer.data_ptr() + layer.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < stop:
            madvise(first, stop - first, _DONTNEED)


def _madvise() -> Callable[[int, int, int], int]:
    call = ctypes.CDLL(None).madvise
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    madvise: Callable[[int, int, int], int] = call
    return madvise

"""Runs a compiled C function on torch's own worker threads.

A second thread pool on the same cores would compete with torch's: measured here, a decode step took
five times as long. torch's wheels for Linux bring their OpenMP library; `GOMP_parallel` is the
function that a compiler calls for a parallel region, a stable interface. Where it is not found, the
function runs on the calling thread alone. Knows nothing of attention.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import logging
from functools import cache
from pathlib import Path

import torch

log = logging.getLogger(__name__)

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run(function: int, argument: int, parallel: bool) -> None:
    """Call the C function `void f(void *argument)` at address `function`: on every worker thread if
    `parallel`, else on this thread only. Returns when all have returned.
    """
    region = _parallel_region() if parallel and torch.get_num_threads() > 1 else None
    if region is None:
        _FUNCTION(function)(argument)
    else:
        region(function, argument, torch.get_num_threads(), 0)


def barrier() -> int:
    """The address of `void GOMP_barrier(void)`, in which the threads of a region wait for each
    other; 0 if it is not found.
    """
    library = _library()
    return 0 if library is None else ctypes.cast(library.GOMP_barrier, ctypes.c_void_p).value or 0


@cache
def _library() -> ctypes.CDLL | None:
    carried = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    name = str(carried[0]) if carried else ctypes.util.find_library("gomp")
    if name is None:
        log.warning("no OpenMP library found beside torch: kernels run on one thread")
    return ctypes.CDLL(name) if name else None


@cache
def _parallel_region() -> ctypes._NamedFuncPointer | None:
    """`void GOMP_parallel(void (*f)(void *), void *argument, unsigned threads, unsigned flags)`;
    None if it is not found.
    """
    library = _library()
    if library is None:
        return None
    region = library.GOMP_parallel
    region.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    region.restype = None
    return region

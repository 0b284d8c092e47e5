"""Which instructions the CPU kernels may use: a level for each kind of processor that matters.

Each level has all instructions of those below it. A kernel is compiled for one level, and the
choice of arithmetic for a weight depends on it, so tests can run every level that the machine has.

    AVX2          fused multiply-adds of 8 floats
    AVX512        of 16 floats, and twice the registers
    AVX512_BF16   products of pairs of bfloat16, added to float32 (vdpbf16ps), and of four bytes,
                  added to int32 (vpdpbusd)
    AMX           products of tiles of 16 x 32 and 32 x 16 bfloat16, added to float32
"""

from __future__ import annotations

import ctypes
import platform
from enum import IntEnum
from functools import cache

import llvmlite.binding as llvm

from radixserve.errors import ConfigError


class Level(IntEnum):
    """The higher, the more instructions. AVX2 also stands for processors that have none of these
    instructions: LLVM then uses what there is.
    """

    AVX2 = 0
    AVX512 = 1
    AVX512_BF16 = 2
    AMX = 3


_NEEDED = {
    Level.AVX512: ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    Level.AVX512_BF16: ("avx512bf16", "avx512vnni"),
    Level.AMX: ("amx-tile", "amx-bf16"),
}
_ABOVE = {
    Level.AVX2: ("avx512", "avx10", "evex512", "amx"),
    Level.AVX512: ("avx512bf16", "avx10", "amx"),
    Level.AVX512_BF16: ("avx10", "amx"),
    Level.AMX: (),
}  # beginnings of the names of features that a level does not have
_ARCH_PRCTL = 158  # number of the system call on x86-64
_REQUEST_PERMISSION, _TILE_DATA = 0x1023, 18  # ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
_limit = Level.AMX


def limit(level: str) -> None:
    """Let kernels that are compiled from now on, and weights that are packed from now on, use at
    most `level`: the name of a level in lower case, or "auto" for all that the machine has. Done
    before a model is loaded.

    Raises:
        ConfigError: the machine does not have that level.
    """
    global _limit
    wanted = highest() if level == "auto" else Level[level.upper()]
    if wanted > highest():
        raise ConfigError(f"cpu_level: the CPU has {highest().name.lower()} at most, not {level}")
    _limit = wanted


def current() -> Level:
    """The level that kernels use: the highest one that the machine has and `limit` allows."""
    return min(_limit, highest())


@cache
def highest() -> Level:
    """The highest level that this processor and the operating system have."""
    features = _features()
    found = Level.AVX2
    for level, names in _NEEDED.items():
        if not all(features.get(name) for name in names):
            break
        if level == Level.AMX and not _tiles_permitted():
            break
        found = level
    return found


def available() -> list[Level]:
    """All levels of this machine, ascending."""
    return [level for level in Level if level <= highest()]


@cache
def features(level: Level) -> str:
    """The processor's features up to `level`, as LLVM wants them: "+avx2,-avx512f,..."."""
    found = {name: on and not name.startswith(_ABOVE[level]) for name, on in _features().items()}
    return ",".join(f"{'+' if on else '-'}{name}" for name, on in sorted(found.items()))


@cache
def processor() -> str:
    """The processor's kind, as LLVM names it: "znver5"."""
    return str(llvm.get_host_cpu_name())


@cache
def _features() -> dict[str, bool]:
    return dict(llvm.get_host_cpu_features())


def _tiles_permitted() -> bool:
    """Ask the operating system for the tile registers, for all threads of the process. Linux saves
    their 8 KB at a context switch only for processes that have asked.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    system: ctypes.CDLL = ctypes.CDLL(None)
    return bool(system.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)

"""The quantised types of GGUF files: the format of each (`kernels.cpu.gemm.formats`), and how the
bytes of its blocks become codes and scales.

A block holds 32 or 256 inputs of an output. Numbers of half precision lie in it as they are used;
codes and the six-bit scales of the K types are spread over bytes, a few bits in each. The values
are those that the `gguf` package dequantises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from radixserve.checkpoints.gguf_header import KINDS
from radixserve.kernels.cpu.gemm.codes import Codes
from radixserve.kernels.cpu.gemm.formats import Format

_Bytes = npt.NDArray[np.uint8]
_Codes = tuple[_Bytes, Any, Any, Any, Any]  # the fields of `Codes`, for blocks instead of rows

FORMATS = {
    "Q4_0": Format("q4_0", (4,), zero=8),
    "Q4_1": Format("q4_1", (4,), has_minimum=True),
    "Q5_0": Format("q5_0", (4, 1), zero=16),
    "Q5_1": Format("q5_1", (4, 1), has_minimum=True),
    "Q8_0": Format("q8_0", (8,), zero=128),
    "Q2_K": Format("q2_k", (2,), block=256, group=16, has_minimum=True, is_nested=True),
    "Q3_K": Format("q3_k", (2, 1), zero=4, block=256, group=16, is_nested=True),
    "Q4_K": Format("q4_k", (4,), block=256, has_minimum=True, is_nested=True),
    "Q5_K": Format("q5_k", (4, 1), block=256, has_minimum=True, is_nested=True),
    "Q6_K": Format("q6_k", (4, 2), zero=32, block=256, group=16, is_nested=True),
}
"""The format of each type, by the name of the type."""


def codes_of(kind: str, rows: _Bytes) -> Codes:
    """The codes of rows [rows, bytes] of a type."""

    def by_row(numbers: Any) -> Any:
        return None if numbers is None else numbers.reshape(len(rows), -1)

    blocks = rows.reshape(-1, _SIZES[kind])
    return Codes(*[by_row(each) for each in _READERS[kind](blocks)])


def _halves(blocks: _Bytes, at: int) -> Any:
    """A number of half precision of each block, [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2].view(np.float16))


def _bits(packed: _Bytes, bits: int, run: int) -> _Bytes:
    """Codes of `bits` bits, [blocks, codes]: of each `run` bytes first the lowest bits, then the
    next ones, and so on.
    """
    whole = np.dtype((np.void, run))  # numpy moves a run as one item much faster than its bytes
    runs = np.ascontiguousarray(packed.view(whole)).view(np.uint8)
    found = np.empty((runs.size // run, 8 // bits), whole)
    for place in range(8 // bits):
        codes = runs >> np.uint8(place * bits) & np.uint8((1 << bits) - 1)
        found[:, place] = codes.reshape(-1).view(whole)
    return found.view(np.uint8).reshape(len(packed), -1)


def _high_bits(packed: _Bytes) -> _Bytes:
    """One bit for each of 32 inputs, in their order."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def _q4_0(blocks: _Bytes) -> _Codes:
    return _bits(blocks[:, 2:], 4, 16), _halves(blocks, 0), None, None, None


def _q4_1(blocks: _Bytes) -> _Codes:
    return _bits(blocks[:, 4:], 4, 16), _halves(blocks, 0), _halves(blocks, 2), None, None


def _q5_0(blocks: _Bytes) -> _Codes:
    codes = _bits(blocks[:, 6:], 4, 16) | _high_bits(blocks[:, 2:6]) << np.uint8(4)
    return codes, _halves(blocks, 0), None, None, None


def _q5_1(blocks: _Bytes) -> _Codes:
    codes = _bits(blocks[:, 8:], 4, 16) | _high_bits(blocks[:, 4:8]) << np.uint8(4)
    return codes, _halves(blocks, 0), _halves(blocks, 2), None, None


def _q8_0(blocks: _Bytes) -> _Codes:
    return blocks[:, 2:] ^ np.uint8(0x80), _halves(blocks, 0), None, None, None


def _q2_k(blocks: _Bytes) -> _Codes:
    scales = blocks[:, :16]
    codes = _bits(blocks[:, 16:80], 2, 32)
    low, high = ((scales >> np.uint8(shift) & np.uint8(15)).view(np.int8) for shift in (0, 4))
    return codes, _halves(blocks, 80), -_halves(blocks, 82), low, high


def _q3_k(blocks: _Bytes) -> _Codes:
    high = _bits(blocks[:, :32], 1, 32)
    codes = _bits(blocks[:, 32:96], 2, 32) | high << np.uint8(2)
    packed = blocks[:, 96:108]
    scales = _bits(packed[:, :8], 4, 8) | _bits(packed[:, 8:], 2, 4) << np.uint8(4)
    return codes, _halves(blocks, 108), None, scales.view(np.int8) - np.int8(32), None


def _six_bits(packed: _Bytes) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    """The scales and minimums of Q4_K and Q5_K, [blocks, 8] each, from 12 bytes: the first four of
    each lie in six bits of a byte; of the others four bits lie in the last bytes, and two bits in
    the rest of the first ones.
    """
    first, second, low = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    lows = low & np.uint8(15), low >> np.uint8(4)
    found = [
        np.concatenate([each & np.uint8(63), last | each >> np.uint8(2) & np.uint8(48)], axis=1)
        for each, last in zip((first, second), lows, strict=True)
    ]
    return found[0].view(np.int8), found[1].view(np.int8)


def _q4_k(blocks: _Bytes) -> _Codes:
    scales, minimums = _six_bits(blocks[:, 4:16])
    codes = _bits(blocks[:, 16:], 4, 32)
    return codes, _halves(blocks, 0), -_halves(blocks, 2), scales, minimums


def _q5_k(blocks: _Bytes) -> _Codes:
    scales, minimums = _six_bits(blocks[:, 4:16])
    codes = _bits(blocks[:, 48:], 4, 32) | _bits(blocks[:, 16:48], 1, 32) << np.uint8(4)
    return codes, _halves(blocks, 0), -_halves(blocks, 2), scales, minimums


def _q6_k(blocks: _Bytes) -> _Codes:
    codes = _bits(blocks[:, :128], 4, 64) | _bits(blocks[:, 128:192], 2, 32) << np.uint8(4)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return codes, _halves(blocks, 208), None, scales, None


_READERS: dict[str, Callable[[_Bytes], _Codes]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
_SIZES = {kind.name: kind.size for kind in KINDS.values()}

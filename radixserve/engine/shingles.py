"""Finds in one prompt what another one has, wherever it stands: by hashes of each eight tokens in a
row (shingles; Broder 1997). Two prompts that differ in front and go on alike are told by it from
two that have nothing but their first tokens in common.

A hash that two shingles share by chance may change a count of lost tokens, never an answer.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from radixserve.prefix import TOKEN_BYTES

LEAST: Final = 16  # tokens that have to be found again
_DOUBLINGS: Final = 3
_WIDTH: Final = 1 << _DOUBLINGS  # tokens of a shingle
_FARTHER: Final = 8192  # tokens of a longer prompt, beyond twice as many, that are looked at
_SAMPLED: Final = 512  # tokens of a prompt, of whose shingles some are sampled
_SAMPLE_BITS: Final = 3  # one of 2**3 is
_SPARSE: Final = 128  # places of the table for each shingle in it
_FACTORS: Final = [np.uint64(pow(0x9E3779B97F4A7C15, 1 << i, 1 << 64)) for i in range(_DOUBLINGS)]
_MIX: Final = np.uint64(0xD6E8FEB86659FD93)

Hashes = NDArray[np.uint64]


def sample(tokens: bytes) -> list[int]:
    """About an eighth of the shingles in the first 512 of these packed tokens, chosen by their
    hashes, so that the same ones are chosen wherever they stand.
    """
    hashes = _hashes(tokens[: _SAMPLED * TOKEN_BYTES])
    found: list[int] = hashes[hashes >> np.uint64(64 - _SAMPLE_BITS) == 0].tolist()
    return found


def end_of_same(tokens: bytes, other: bytes, shared: int) -> int:
    """Where `tokens` ends to be like `other`, both packed, behind the first `shared` tokens, which
    are the same: the last position up to which at least half of what follows these, and at least
    `LEAST` tokens, is found again in `other` behind them. `shared` if there is none. O(`tokens`),
    however long `other` is.
    """
    start = shared * TOKEN_BYTES
    stop = start + 2 * len(tokens) + _FARTHER * TOKEN_BYTES
    mine, theirs = _hashes(tokens[start:]), _hashes(other[start:stop])
    if not (len(mine) and len(theirs)):
        return shared
    is_again = _covered(_is_in(mine, theirs))
    num_again, num_tokens = is_again.cumsum(), np.arange(1, len(is_again) + 1)
    ends = np.flatnonzero(is_again & (num_again >= LEAST) & (2 * num_again >= num_tokens))
    return shared + int(ends[-1]) + 1 if len(ends) else shared


def _hashes(tokens: bytes) -> Hashes:
    """The hash of the eight tokens from each position on: shape [num_tokens - 7], or empty."""
    found = np.frombuffer(tokens, np.int32).astype(np.uint64)
    for doubling, factor in enumerate(_FACTORS):  # of 2, 4, then 8 tokens
        width = 1 << doubling
        found = found[:-width] * factor + found[width:]
    return found * _MIX


def _is_in(mine: Hashes, theirs: Hashes) -> NDArray[np.bool_]:
    """Which of `mine` are among `theirs`; of others less than one in `_SPARSE` by chance."""
    bits = (_SPARSE * len(theirs)).bit_length()
    shift, known = np.uint64(64 - bits), np.zeros(1 << bits, bool)
    known[theirs >> shift] = True
    found: NDArray[np.bool_] = known[mine >> shift]
    return found


def _covered(found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which tokens are in a shingle that was found, by whether the one from each position on was:
    shape [n] to [n + 7].
    """
    covered = np.zeros(len(found) + _WIDTH - 1, bool)
    for i in range(_WIDTH):
        covered[i : i + len(found)] |= found
    return covered

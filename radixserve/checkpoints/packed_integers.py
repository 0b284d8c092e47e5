"""Codes of 4 and 8 bits in words of 32 bits, as the quantised checkpoints of several tools hold
them: which bits of which word are the code of an input and an output. Knows no files.

    compressed-tensors  weights [outputs, words of inputs], zero points [words of outputs, groups]
    GPTQ                weights [words of inputs, outputs], zero points [groups, words of outputs]
    AWQ                 weights [inputs, words of outputs], zero points [groups, words of outputs]

The first code of a word lies in its lowest bits. In a word of AWQ outputs have the order _AWQ.
"""

from __future__ import annotations

import torch

_WORD = 32  # bits
_AWQ = (0, 4, 1, 5, 2, 6, 3, 7)  # the place in a word of each of eight outputs


def words_for(count: int, bits: int) -> int:
    """Words that hold so many codes, the last one perhaps in part."""
    return -(-count * bits // _WORD)


def codes_in_rows(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first `count` codes of each row, uint8 [rows, count], from words int32 [rows, words]."""
    octets = words.contiguous().view(torch.uint8)
    if bits == 4:
        octets = torch.stack([octets & 15, octets >> 4], -1).flatten(1)
    return octets[:, :count].contiguous()


def codes_in_columns(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first `count` codes of each column, uint8 [columns, count], from words int32
    [words, columns].
    """
    return codes_in_rows(words.T, bits, count)


def codes_of_awq(words: torch.Tensor) -> torch.Tensor:
    """Codes of 4 bits, uint8 [outputs, rows], from words int32 [rows, words of outputs]."""
    stored = codes_in_rows(words, 4, 8 * words.shape[1])
    ordered = stored.view(len(words), -1, len(_AWQ))[:, :, _AWQ]
    return ordered.flatten(1).T.contiguous()

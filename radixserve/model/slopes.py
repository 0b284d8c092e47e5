"""Slopes by distance (ALiBi): what attention subtracts from a score for each position that lies
between, by head. Press et al. 2021 (arXiv:2108.12409).

Two rules are in use. They agree where the number of heads is a power of two.
"""

from __future__ import annotations

import math

import torch


def bloom_slopes(heads: int) -> torch.Tensor:
    """Those of BLOOM and Falcon, float32 [heads]: a power of two of heads in order, then every
    second slope of twice as many.
    """
    whole = 1 << int(math.log2(heads))
    more = _slopes(2 * whole)[::2][: heads - whole]
    return torch.cat([_slopes(whole), more])


def mpt_slopes(heads: int, most: float) -> torch.Tensor:
    """Those of MPT, float32 [heads]: 2 ** -`most` is the smallest."""
    found = _slopes(1 << math.ceil(math.log2(heads)), most)
    return found if len(found) == heads else torch.cat([found[1::2], found[::2]])[:heads]


def _slopes(heads: int, most: float = 8.0) -> torch.Tensor:
    """2 ** -(most * i / heads) for i from 1 to `heads`."""
    return torch.exp2(-most / heads * torch.arange(1, heads + 1, dtype=torch.float64)).float()

"""Rotary tables that depend on positions only, by frequencies that are given.

transformers computes the frequencies from a model's configuration, by one of several formulas. They
are taken from its module, so that the formulas need not be known here.
"""

from __future__ import annotations

import torch
from torch import nn

from radixserve.model.elementwise import RowwiseRotary
from radixserve.model.rotary_tables import ModuleTable
from radixserve.model.weights import Rotary

_COMPARED_ROWS = 64  # in one place
_COMPARED_PLACES = 32


class FixedRotary(nn.Module):
    """Cosines and sines of positions, as transformers' modules of the Llama kind compute them."""

    def __init__(self, frequencies: torch.Tensor, factor: float) -> None:
        """`frequencies` [dim / 2] are radians per position, float32; `factor` scales results."""
        super().__init__()
        self.frequencies, self.factor = frequencies, factor

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, rows, dim] of the type of `x`, for positions [1, rows]."""
        angles = position_ids[..., None].float() * self.frequencies
        both = torch.cat((angles, angles), dim=-1)
        cos, sin = both.cos() * self.factor, both.sin() * self.factor
        return cos.to(x.dtype), sin.to(x.dtype)


def fixed_rotary_of(table: Rotary, context_length: int, dtype: torch.dtype) -> FixedRotary | None:
    """The fixed rotary behind a table; None if it gives other bits than that in one of the compared
    places, which are spread over the context.
    """
    inner = getattr(getattr(table, "module", None), "inner", None)
    frequencies = getattr(inner, "inv_freq", None)
    factor = getattr(inner, "attention_scaling", None)
    if not isinstance(factor, int | float):
        return None
    if not isinstance(frequencies, torch.Tensor) or frequencies.dtype != torch.float32:
        return None
    found = FixedRotary(frequencies.clone(), float(factor))
    x, ours = torch.empty(1, 1, dtype=dtype), ModuleTable(RowwiseRotary(found))
    last = max(0, context_length - _COMPARED_ROWS)
    for place in range(_COMPARED_PLACES):
        start = last * place // (_COMPARED_PLACES - 1)
        positions = torch.arange(start, start + _COMPARED_ROWS)
        pairs = zip(ours(x, positions), table(x, positions), strict=True)
        if not all(torch.equal(mine, own) for mine, own in pairs):
            return None
    return found

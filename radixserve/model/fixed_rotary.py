"""Rotary tables that depend on positions only, by frequencies that are given.

transformers computes the frequencies from a model's configuration, by one of several formulas. They
are taken from its module, so that the formulas need not be known here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from radixserve.model.elementwise import RowwiseRotary
from radixserve.model.rotary_tables import ComplexTable, ModuleTable
from radixserve.model.weights import Rotary, Table

_COMPARED_ROWS = 64  # in one place
_COMPARED_PLACES = 32


class FixedRotary(nn.Module):
    """Cosines and sines of positions, as transformers' modules of the Llama kind compute them."""

    def __init__(
        self, frequencies: torch.Tensor, factor: float, is_rounded: bool, is_complex: bool
    ) -> None:
        """`frequencies` [dim / 2] are radians per position, float32; `factor` scales results, which
        are float32 or rounded to the type of the stream. As complex numbers they are computed by
        another function of torch, which gives other last bits.
        """
        super().__init__()
        self.frequencies, self.factor = frequencies, factor
        self.is_rounded, self.is_complex = is_rounded, is_complex

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, rows, dim], for positions [1, rows]."""
        angles = position_ids[..., None].float() * self.frequencies
        both = torch.cat((angles, angles), dim=-1)
        if self.is_complex:
            turned = torch.polar(torch.ones_like(both), both) * self.factor
            cos, sin = turned.real, turned.imag
        else:
            cos, sin = both.cos() * self.factor, both.sin() * self.factor
        return (cos.to(x.dtype), sin.to(x.dtype)) if self.is_rounded else (cos, sin)


@dataclass(frozen=True)
class FixedTable:
    """The table of a `FixedRotary`."""

    frequencies: torch.Tensor
    factor: float
    is_rounded: bool  # as in `FixedRotary`
    is_complex: bool
    is_reversed: bool = False  # as in `ModuleTable`
    _table: ModuleTable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        how = self.is_rounded, self.is_complex
        module = RowwiseRotary(FixedRotary(self.frequencies, self.factor, *how))
        object.__setattr__(self, "_table", ModuleTable(module, is_reversed=self.is_reversed))

    def __call__(self, x: torch.Tensor, positions: torch.Tensor) -> Table:
        return self._table(x, positions)


def fixed_table_of(table: Rotary, context_length: int, dtype: torch.dtype) -> FixedTable | None:
    """The fixed table that gives what the table of a module gives; None if it gives other bits in
    one of the compared places, which are spread over the context.
    """
    if not isinstance(table, ModuleTable | ComplexTable):
        return None
    frequencies, factor = (_own(table, name) for name in ("inv_freq", "attention_scaling"))
    if not isinstance(factor, int | float) or not isinstance(frequencies, torch.Tensor):
        return None
    if frequencies.dtype != torch.float32:
        return None
    is_reversed = isinstance(table, ModuleTable) and table.is_reversed
    for how in ((True, False), (False, False), (False, True)):
        found = FixedTable(frequencies, float(factor), *how, is_reversed)
        if _agree(found, table, context_length, dtype):
            return found
    return None


def _agree(ours: Rotary, own: Rotary, context_length: int, dtype: torch.dtype) -> bool:
    """Whether two tables give the same bits for a stream of this type."""
    x, last = torch.empty(1, 1, dtype=dtype), max(0, context_length - _COMPARED_ROWS)
    for place in range(_COMPARED_PLACES):
        start = last * place // (_COMPARED_PLACES - 1)
        positions = torch.arange(start, start + _COMPARED_ROWS)
        pairs = zip(ours(x, positions), own(x, positions), strict=True)
        if not all(torch.equal(*pair) for pair in pairs):
            return False
    return True


def _own(table: ModuleTable | ComplexTable, name: str) -> Any:
    """What the module of a table has under a name, perhaps for each kind of layers."""
    inner = getattr(table.module, "inner", None)
    kind = table.kind if isinstance(table, ModuleTable) else None
    return getattr(inner, name if kind is None else f"{kind}_{name}", None)

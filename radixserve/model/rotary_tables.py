"""Tables of rotary positions: the cosine and the sine of each pair of numbers that is rotated.

They are those that transformers' own modules compute, so that their many formulas need not be known
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from radixserve.model.weights import Rotary, Table

_MOST_KNOWN = 32768  # positions whose rows are kept
_STEP = 1024  # positions whose rows are computed at a time


@dataclass(frozen=True, slots=True)
class ModuleTable:
    """The table of a transformers module that was made row-wise."""

    module: Any  # gives cosines and sines [1, rows, dim] of x and positions [1, rows]
    repeats: bool = False  # each number follows itself, else all numbers follow all numbers
    kind: str | None = None  # of layers, where the module has a table for each
    is_single: bool = False  # the module gives each number once
    is_reversed: bool = False  # pairs are rotated the other way round

    def __call__(self, x: torch.Tensor, positions: torch.Tensor) -> Table:
        kind = {} if self.kind is None else {"layer_type": self.kind}
        cos, sin = self.module(x[None], positions[None], **kind)
        cos, sin = self._each_once(cos), self._each_once(sin)
        return cos, -sin if self.is_reversed else sin

    def _each_once(self, found: torch.Tensor) -> torch.Tensor:
        if self.is_single:
            return found[0].float().contiguous()
        pairs = found.shape[-1] // 2
        once = found[0, :, ::2] if self.repeats else found[0, :, :pairs]
        return once.float().contiguous()


@dataclass(frozen=True, slots=True)
class ComplexTable:
    """The table of a transformers module that gives cosines and sines as complex numbers."""

    module: Any  # gives complex numbers [1, rows, pairs] of x and positions [1, rows]

    def __call__(self, x: torch.Tensor, positions: torch.Tensor) -> Table:
        found = self.module(x[None], positions[None])[0]
        return found.real.float().contiguous(), found.imag.float().contiguous()


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table that a model keeps for all positions."""

    values: torch.Tensor  # [positions, 2 * pairs]: sines, then cosines

    def __call__(self, x: torch.Tensor, positions: torch.Tensor) -> Table:
        sin, cos = self.values[positions].to(x.dtype).float().chunk(2, -1)
        return cos.contiguous(), sin.contiguous()


def for_few_rows(table: Rotary) -> Rotary:
    """A table that gives the same bits in less time for few rows."""
    return KnownTable(table) if isinstance(table, ModuleTable) else table


class KnownTable:
    """A module's table that keeps the rows of the first positions, at most 32,768, because a module
    takes over 0.1 ms for one row. A row depends on its position only (`radixserve.rotary`).
    """

    def __init__(self, table: ModuleTable) -> None:
        self._table, self._known = table, 0
        self._kept: Table = torch.empty(0), torch.empty(0)

    def __call__(self, x: torch.Tensor, positions: torch.Tensor) -> Table:
        last = int(positions.max())
        if last >= _MOST_KNOWN:
            return self._table(x, positions)
        while self._known <= last:
            self._extend(x)
        cos, sin = self._kept
        return cos[positions], sin[positions]

    @torch.inference_mode()
    def _extend(self, x: torch.Tensor) -> None:
        """Compute the rows of the next positions."""
        begin, end = self._known, self._known + _STEP
        found = self._table(x, torch.arange(begin, end))
        if begin == 0:  # memory that was never written takes none
            cos, sin = found
            self._kept = (
                torch.empty(_MOST_KNOWN, cos.shape[1]),
                torch.empty(_MOST_KNOWN, sin.shape[1]),
            )
        for kept, rows in zip(self._kept, found, strict=True):
            kept[begin:end] = rows
        self._known = end

"""Modules that multiply by packed weights, in place of torch's own.

A row's result does not depend on how many rows there are (`kernels.cpu.gemm`). Some models ask such
a module for the dtype or device of its weight; `weight` is an empty tensor that has both. Knows
nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.kernels.cpu.gemm.lookup import Lookup

_ROWS_COMPARED = 4096  # of an embedding, at a time


class PackedLinear(nn.Module):
    """Replaces an `nn.Linear` or a `Conv1D`."""

    def __init__(self, weight: Gemm) -> None:
        super().__init__()
        self.packed = weight
        self.weight = torch.empty(0, dtype=weight.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.packed(x)


class PackedEmbedding(nn.Module):
    """Replaces an `nn.Embedding` whose weight a packed linear holds, too. `embed_scale` is what its
    rows are multiplied by, a number of their type.
    """

    def __init__(self, weight: Gemm, lookup: Lookup, embed_scale: float = 1.0) -> None:
        super().__init__()
        self.packed, self.embed_scale = weight, embed_scale
        self.weight = torch.empty(0, dtype=weight.dtype)
        self._lookup = lookup

    @classmethod
    def of(
        cls, embedding: nn.Embedding, weight: Gemm, *, is_quantised: bool = False
    ) -> PackedEmbedding | None:
        """The embedding in the memory of `weight`; None if not every value is there, bit for bit.
        Cost: reading both once. An embedding without memory of its own has the values of `weight`,
        and so has one whose weight is quantised.
        """
        scale = torch.as_tensor(getattr(embedding, "embed_scale", 1.0)).to(weight.dtype)
        found = cls(weight, weight.lookup(), float(scale))
        if embedding.weight.is_meta or is_quantised:
            return found
        for ids in torch.split(torch.arange(len(embedding.weight)), _ROWS_COMPARED):
            if not torch.equal(found._lookup(ids), embedding.weight[ids]):
                return None
        return found

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = self._lookup(ids)
        return found if self.embed_scale == 1.0 else found * self.embed_scale


class FusedLinears:
    """Several linears of the same input as one packed weight. The first call for an input computes
    all outputs, and the others are kept until the last one is fetched.
    """

    def __init__(self, weight: Gemm, sizes: Sequence[int]) -> None:
        self.weight = weight
        self.sizes = list(sizes)
        self._input: torch.Tensor | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()

    def output(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """Output `index` for input `x`, which is recognised by identity. Fetching the last output
        drops the kept ones.
        """
        if x is not self._input:
            self._input, self._outputs = x, torch.split(self.weight(x), self.sizes, -1)
        output = self._outputs[index]
        if index == len(self.sizes) - 1:
            self._input, self._outputs = None, ()
        return output


def packed_weight(module: PackedLinear | FusedPart) -> Gemm:
    """The packed weight that a module calls: its own, or the one fused of several modules."""
    return module.fused.weight if isinstance(module, FusedPart) else module.packed


class FusedPart(nn.Module):
    """Replaces one of the linears of a `FusedLinears`."""

    def __init__(self, fused: FusedLinears, index: int) -> None:
        super().__init__()
        self.fused = fused
        self.index = index
        self.weight = torch.empty(0, dtype=fused.weight.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fused.output(x, self.index)

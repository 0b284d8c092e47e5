"""Linear layers whose rows do not depend on how many rows there are: oneDNN with weights packed
once, float32, CPU.

The packed operator is private to torch (its own compiler calls it), so each weight shape is tested
before use. Row invariance is a property of the operator, the processor and the shape: with more
than about 1,000 inputs a single row takes a matrix-vector path that sums in another order, so such
a call is padded to two rows. Where `few_rows` has a kernel that gives the same bits, it serves the
few rows. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from radixserve.model.codes import Codes
from radixserve.model.few_rows import FEW, FewRows

_PACK_FOR = 16  # rows for which oneDNN chooses the layout; decode batches are about that
_TESTED_ROWS = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    12,
    15,
    16,
    17,
    24,
    31,
    32,
    33,
    48,
    63,
    64,
    65,
    96,
    128,
    129,
    200,
    256,
    300,
)
_TESTED_IF_LARGE = (1, 2, 3, 4, 7, 8, 16, 33, 64, 256)
_CANONICAL_ROWS = 512
_CANONICAL_IF_LARGE = 272  # still more than those tested; their outputs take memory
_ROWS_STEP = (
    16  # rows are filled up to this: oneDNN keeps 0.6 MB of code for every shape that it has seen
)
_PROBE_ROWS = 7  # more than one group of the kernel's
_LARGE = (
    1 << 24
)  # weights with more entries are tested with fewer rows: their test would take seconds


class Untrusted(Exception):
    """The packed operator is missing here, or its rows depend on their number in a way that padding
    does not cure.
    """


class PackedWeight:
    """One weight [out, in], packed, with its bias. Calling it with [..., in] gives [..., out]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.out_features, self.in_features = weight.shape
        try:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(
                weight.detach().contiguous(), _PACK_FOR
            )
        except (AttributeError, RuntimeError) as error:
            raise Untrusted(f"this torch cannot pack linear weights ({error})") from error
        self._bias = None if bias is None else bias.detach().clone()
        self.min_rows = 1
        self.code_bits = 0  # of the codes that a few rows are multiplied by; 0: by float32
        self.few: FewRows | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.numel() // self.in_features
        if rows <= FEW and self.few is not None:
            return self.few(x.reshape(rows, self.in_features)).view(
                *x.shape[:-1], self.out_features
            )
        wanted = -(-rows // _ROWS_STEP) * _ROWS_STEP if rows > FEW else self.min_rows
        if rows >= wanted:
            return self.multiply(x)
        padded = F.pad(x.reshape(rows, self.in_features), (0, 0, 0, wanted - rows))
        return self.multiply(padded)[:rows].view(*x.shape[:-1], self.out_features)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Without padding."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self._bias, "none", [], ""
        )
        return out

    def find_few(self) -> int:
        """Look for a kernel for few rows that gives the bits of `multiply`; the length of its
        chains, 0 for none.
        """
        x = torch.randn(2 * FEW, self.in_features, generator=torch.Generator().manual_seed(1))
        shape = (self.out_features, self.in_features)
        self.few = FewRows.like(self._packed, self._bias, shape, x[:FEW], self.multiply(x)[:FEW])
        return 0 if self.few is None else self.few.chain

    def use_few(self, chain: int) -> None:
        """Use the kernel that `find_few` found for a weight of the same shape; with codes if all
        values have one.
        """
        shape = (self.out_features, self.in_features)
        if not chain:
            return
        self.few = FewRows(self._packed, self._bias, shape, chain)
        codes = Codes.of(torch.ops.mkldnn.data_ptr(self._packed), shape)
        if codes is not None:
            coded, x = (
                FewRows(self._packed, self._bias, shape, chain, codes),
                torch.randn(_PROBE_ROWS, shape[1]),
            )
            if torch.equal(coded(x), self.few(x)):
                self.few, self.code_bits = coded, codes.bits


class RowTest:
    """Tests packed weights once per shape, on random rows."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], tuple[int, int]] = {}  # min_rows, chain of `few_rows`

    def prepare(self, weight: PackedWeight) -> None:
        """Find what gives each row of `weight` the same bits, and have it used.

        Raises:
            Untrusted: nothing does from two rows on, or the operator fails.
        """
        shape = (weight.out_features, weight.in_features)
        if shape not in self._found:
            self._found[shape] = _find_min_rows(weight), weight.find_few()
        weight.min_rows, chain = self._found[shape]
        weight.use_few(chain)


def _find_min_rows(weight: PackedWeight) -> int:
    small = weight.out_features * weight.in_features < _LARGE
    generator = torch.Generator().manual_seed(0)
    rows = _CANONICAL_ROWS if small else _CANONICAL_IF_LARGE
    x = torch.randn(rows, weight.in_features, generator=generator)
    tested = _TESTED_ROWS if small else _TESTED_IF_LARGE
    try:
        canonical = weight.multiply(x)
        same = {n: torch.equal(weight.multiply(x[-n:]), canonical[-n:]) for n in tested}
    except (AttributeError, RuntimeError) as error:
        raise Untrusted(f"this torch cannot multiply by packed weights ({error})") from error
    wrong = [rows for rows, equal in same.items() if not equal and rows > 1]
    if wrong:
        raise Untrusted(
            f"packed {weight.in_features}x{weight.out_features} linears round {wrong[0]} "
            "rows differently"
        )
    return 1 if same[1] else 2


class PackedLinear(nn.Module):
    """Stands in for an `nn.Linear` or a `Conv1D`."""

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        self.packed = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.packed(x)


class FusedLinears:
    """Several linears of one input as one packed weight: computed when the first is asked for, kept
    for the others.
    """

    def __init__(self, weight: PackedWeight, sizes: Sequence[int]) -> None:
        self.weight = weight
        self._sizes = list(sizes)
        self._input: torch.Tensor | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()

    def output(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """Output `index` for input `x`. The last one drops what was kept."""
        if x is not self._input:
            self._input, self._outputs = x, torch.split(self.weight(x), self._sizes, -1)
        output = self._outputs[index]
        if index == len(self._sizes) - 1:
            self._input, self._outputs = None, ()
        return output


class FusedPart(nn.Module):
    """Stands in for one of the linears in a `FusedLinears`."""

    def __init__(self, fused: FusedLinears, index: int) -> None:
        super().__init__()
        self.fused = fused
        self.index = index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fused.output(x, self.index)

"""Linear layers whose rows do not depend on how many rows there are: oneDNN's GEMM with weights
packed once, float32, CPU.

The packed operator is private to torch (its own compiler calls it), so each weight shape is tested
before use. Row invariance is a property of the operator, the processor and the shape: with more
than about 1,000 inputs a single row takes a matrix-vector path that sums in another order, so such
a call is padded to two rows. Where `gemm` has a kernel that gives the same bits, that kernel
serves calls with few rows; a weight whose values all have codes is kept as codes only, and the
kernel serves every call. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from radixserve.kernels.cpu.gemm import FEW, FewRows
from radixserve.kernels.cpu.lookup import Lookup
from radixserve.kernels.cpu.quantised import Codes

_PACK_FOR = 16  # rows that oneDNN chooses the packed layout for; decode batches are about that
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
# Where a kernel serves the calls with few rows, and others are padded to a multiple of _ROWS_STEP.
_TESTED_BEYOND_FEW = (112, 128, 208, 256, 304)
_TESTED_BEYOND_FEW_IF_LARGE = (112, 256)
_CANONICAL_ROWS = 512  # of the product that the tested ones are compared with
_CANONICAL_IF_LARGE = 272  # still more than the tested ones; their outputs take memory
# Rows are padded to a multiple of this: oneDNN keeps 0.6 MB of code for every shape it has seen.
_ROWS_STEP = 16
_ROWS_COMPARED = 4096  # of an embedding, at a time
_PROBE_ROWS = 7  # more than the six rows that the kernel multiplies in one pass
# Weights with more entries than this are tested with fewer rows: the full test would take seconds.
_LARGE = 1 << 24


class Untrusted(Exception):
    """The packed operator does not exist here, or its rows depend on their number in a way that
    padding does not cure.
    """


class PackedWeight:
    """One weight [out, in], packed, with its bias. Calling it maps [..., in] to [..., out]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.out_features, self.in_features = weight.shape
        try:
            self._packed: torch.Tensor | None = torch.ops.mkldnn._reorder_linear_weight(
                weight.detach().contiguous(), _PACK_FOR
            )
        except (AttributeError, RuntimeError) as error:
            raise Untrusted(f"this torch cannot pack linear weights ({error})") from error
        self._bias = None if bias is None else bias.detach().clone()
        self.min_rows = 1
        self.code_bits = 0  # bits of a code; 0: the weight is kept as float32
        self.few: FewRows | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.numel() // self.in_features
        if self.few is not None and (rows <= FEW or self.code_bits):
            return self.few(x.reshape(rows, self.in_features)).view(
                *x.shape[:-1], self.out_features
            )
        wanted = -(-rows // _ROWS_STEP) * _ROWS_STEP if rows > FEW else self.min_rows
        if rows >= wanted:
            return self.multiply(x)
        padded = F.pad(x.reshape(rows, self.in_features), (0, 0, 0, wanted - rows))
        return self.multiply(padded)[:rows].view(*x.shape[:-1], self.out_features)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """oneDNN's product for x [..., in] as it is, without padding. A weight that is kept as
        codes has none.
        """
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self._bias, "none", [], ""
        )
        return out

    def find_few(self, x: torch.Tensor, y: torch.Tensor) -> int:
        """Look for a kernel for few rows that gives exactly `y` [rows, out], which is `multiply` of
        x [rows, in]. Returns the length of its chains in inputs, 0 if there is none.
        """
        assert self._packed is not None, "not yet kept as codes"
        shape = (self.out_features, self.in_features)
        self.few = FewRows.like(self._packed, self._bias, shape, x[:FEW], y[:FEW])
        return 0 if self.few is None else self.few.chain

    def use_few(self, chain: int) -> None:
        """Use the kernel that `find_few` found for a weight of this shape. If every value has a
        code, and a test product by codes has the same bits, the float32 values are dropped.
        """
        shape = (self.out_features, self.in_features)
        if not chain:
            return
        assert self._packed is not None, "not yet kept as codes"
        self.few = FewRows(self._packed, self._bias, shape, chain)
        codes = Codes.of(torch.ops.mkldnn.data_ptr(self._packed), shape)
        if codes is not None:
            coded = FewRows(self._packed, self._bias, shape, chain, codes)
            x = torch.randn(_PROBE_ROWS, shape[1])
            if torch.equal(coded(x), self.few(x)):
                self.few, self.code_bits, self._packed = coded, codes.bits, None


class RowTest:
    """Tests packed weights once per shape, on random rows."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], tuple[int, int]] = {}  # shape: (min_rows, chain)

    def prepare(self, weight: PackedWeight) -> None:
        """Test the shape of `weight`, once, and set it up so that each row gets the same bits
        whatever the number of rows.

        Raises:
            Untrusted: in products of two or more rows a row's bits depend on their number, or
                the operator fails.
        """
        shape = (weight.out_features, weight.in_features)
        if shape not in self._found:
            self._found[shape] = _tested(weight)
        weight.min_rows, chain = self._found[shape]
        weight.use_few(chain)


def _tested(weight: PackedWeight) -> tuple[int, int]:
    """The least number of rows, 1 or 2, from which on each row has the same bits as in a product of
    many, and the chains of the kernel for few rows (0 if there is none). Raises Untrusted if some
    larger number of rows gives other bits.

    Only numbers of rows that oneDNN's operator will be called with are tested, because it keeps
    code for each of them.
    """
    small = weight.out_features * weight.in_features < _LARGE
    generator = torch.Generator().manual_seed(0)
    rows = _CANONICAL_ROWS if small else _CANONICAL_IF_LARGE
    x = torch.randn(rows, weight.in_features, generator=generator)
    try:
        canonical = weight.multiply(x)
        chain = weight.find_few(x, canonical)
        tested = _tested_rows(small, bool(chain))
        same = {n: torch.equal(weight.multiply(x[-n:]), canonical[-n:]) for n in tested}
    except (AttributeError, RuntimeError) as error:
        raise Untrusted(f"this torch cannot multiply by packed weights ({error})") from error
    wrong = [rows for rows, equal in same.items() if not equal and rows > 1]
    if wrong:
        raise Untrusted(
            f"packed {weight.in_features}x{weight.out_features} linears round {wrong[0]} "
            "rows differently"
        )
    return (1 if same.get(1, True) else 2), chain


def _tested_rows(small: bool, few: bool) -> Sequence[int]:
    """The numbers of rows to test for a small or large weight, with or without a kernel for few
    rows.
    """
    if few:
        return _TESTED_BEYOND_FEW if small else _TESTED_BEYOND_FEW_IF_LARGE
    return _TESTED_ROWS if small else _TESTED_IF_LARGE


class PackedLinear(nn.Module):
    """Replaces an `nn.Linear` or a `Conv1D`."""

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        self.packed = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.packed(x)


class PackedEmbedding(nn.Module):
    """Replaces an `nn.Embedding` whose weight a packed linear holds, too."""

    def __init__(self, weight: PackedWeight, lookup: Lookup) -> None:
        super().__init__()
        self.packed = weight
        self._lookup = lookup

    @classmethod
    def of(cls, embedding: nn.Embedding, weight: PackedWeight) -> PackedEmbedding | None:
        """The embedding in the memory of `weight`; None if the layout of that is not known, or if
        not every value is there, bit for bit. Cost: reading both once.
        """
        if weight.few is None:
            return None
        found = cls(weight, weight.few.lookup())
        for ids in torch.split(torch.arange(len(embedding.weight)), _ROWS_COMPARED):
            if not torch.equal(found(ids), embedding.weight[ids]):
                return None
        return found

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self._lookup(ids)


class FusedLinears:
    """Several linears of the same input as one packed weight. The first call for an input computes
    all outputs, and the others are kept until the last one is fetched.
    """

    def __init__(self, weight: PackedWeight, sizes: Sequence[int]) -> None:
        self.weight = weight
        self._sizes = list(sizes)
        self._input: torch.Tensor | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()

    def output(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """Output `index` for input `x`, which is recognised by identity. Fetching the last output
        drops the kept ones.
        """
        if x is not self._input:
            self._input, self._outputs = x, torch.split(self.weight(x), self._sizes, -1)
        output = self._outputs[index]
        if index == len(self._sizes) - 1:
            self._input, self._outputs = None, ()
        return output


class FusedPart(nn.Module):
    """Replaces one of the linears of a `FusedLinears`."""

    def __init__(self, fused: FusedLinears, index: int) -> None:
        super().__init__()
        self.fused = fused
        self.index = index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fused.output(x, self.index)

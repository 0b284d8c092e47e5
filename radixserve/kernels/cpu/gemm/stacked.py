"""One GEMM by several packed weights of the same inputs, whose outputs stand one behind the other.

Linears of one input are packed as one weight if they have the same format. Checkpoints mix formats
within a layer, though (Q4_K_M keeps some of V in Q6_K): then each part is packed for itself and
multiplied by its own kernel. Threads go on to the next part without waiting for each other.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from radixserve.kernels.arrays import Longs
from radixserve.kernels.cpu import native, threads
from radixserve.kernels.cpu.block import Block, Int64s, addresses
from radixserve.kernels.cpu.compile import call_address
from radixserve.kernels.cpu.gemm.block import COUNTERS, MOST_PARTS, PART_COUNTERS
from radixserve.kernels.cpu.gemm.call import Gemm, scratch_memory
from radixserve.kernels.cpu.gemm.lookup import Lookup


class StackedBlock(Block):
    """The kernels of all parts and their blocks."""

    kernels: Int64s  # [parts], addresses
    blocks: Int64s  # [parts], addresses


def multiply_parts(address: Any) -> None:
    """Every thread calls this with the address of a `StackedBlock`. `native` compiles it."""
    b = StackedBlock.read(address)
    for part in range(len(b.kernels)):
        call_address(b.kernels[part], b.blocks[part])


class StackedGemm(Gemm):
    """Packed weights [out, in] of the same inputs, used as one."""

    def __init__(self, parts: Sequence[Gemm]) -> None:
        """At most MOST_PARTS parts, for activations of the same type."""
        assert 1 < len(parts) <= MOST_PARTS, "parts have counters of their own"
        self.parts = tuple(parts)
        self.dtype, self.in_features = parts[0].dtype, parts[0].in_features
        self.out_features = sum(each.out_features for each in parts)
        self.bias = None  # each part has its own
        self._kept: list[object] = []

    def _product(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        flat = x.reshape(-1, self.in_features).contiguous()
        out = torch.empty(len(flat), self.out_features, dtype=dtype)
        if len(flat):
            address, block, _kept = self._launched(flat, out, np.zeros(COUNTERS, np.int64), None)
            threads.run(address, block.address, True)
        return out.view(*x.shape[:-1], self.out_features)

    def launch(
        self, x: torch.Tensor, out: torch.Tensor, counter: Longs, queue: Longs | None = None
    ) -> tuple[int, Block]:
        """As `Gemm.launch`. What the block points to lives as long as this object."""
        address, block, kept = self._launched(x, out, counter, queue)
        self._kept.append(kept)
        return address, block

    def _launched(
        self, x: torch.Tensor, out: torch.Tensor, counter: Longs, queue: Longs | None
    ) -> tuple[int, StackedBlock, object]:
        """A kernel's address, its block, and what must outlive it."""
        sizes = [each.scratch_bytes(len(x)) for each in self.parts]
        scratch = torch.split(scratch_memory(sum(sizes))[: sum(sizes)], sizes)
        blocks, column = [], 0
        for number, part in enumerate(self.parts):
            own = counter[number * PART_COUNTERS : (number + 1) * PART_COUNTERS]
            _, block = part.launch(x, out, own, queue)
            block.set(scratch=scratch[number], stride=self.out_features, column=column)
            blocks.append(block)
            column += part.out_features
        arrays = np.array([each.kernel.address for each in self.parts]), addresses(blocks)
        found = StackedBlock(kernels=arrays[0], blocks=arrays[1])
        return native.address(multiply_parts), found, (blocks, arrays)

    def lookup(self) -> Lookup:
        raise NotImplementedError("an embedding is one weight")
